"""What people expect of any command: quiet, dry runs, pipes, results alone on standard output."""

import io
import json
import sys

import datasets
import huggingface_hub.utils
import pytest
import torch
import transformers.utils.logging
from tiny_models import build_once
from transformers import AutoModel

from sensedict_cli import main
from sensedict_hf import SKDStudentModel, build_sense_dictionary


@pytest.fixture(autouse=True)
def bars():
    """`--quiet` turns bars off for the rest of the process."""
    yield
    datasets.enable_progress_bars()
    huggingface_hub.utils.enable_progress_bars()
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture
def senses(bert, texts, tmp_path):
    dictionary = build_once(bert, texts, budget=90)
    dictionary.save_pretrained(tmp_path / "senses")
    return tmp_path / "senses"


def run(capsys, *arguments):
    capsys.readouterr()  # of fixtures
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def facts(out):
    """Read the two columns of a dry run."""
    return {name.strip(): value for name, value in (line.rsplit("  ", 1) for line in out.splitlines())}


def test_a_build_from_a_pipe_is_quiet_and_as_large_as_its_dry_run_said(
    capsys, texts, teacher_folder, tmp_path, monkeypatch
):
    command = [
        "build",
        "--teacher",
        teacher_folder,
        "--texts",
        "-",
        "--quiet",
        "--output",
        tmp_path / "out" / "senses",
    ]
    for dry in (["--dry-run"], []):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(texts).encode())))
        status, out, err = run(capsys, *command, *dry)
        assert status == 0 and err == ""
        assert (tmp_path / "out").exists() == (not dry)
        if dry:
            expected = facts(out)
    config = AutoModel.from_pretrained(tmp_path / "out" / "senses").config
    assert expected["senses"] == str(config.num_senses) and expected["texts"] == str(config.num_texts) == "60"
    assert expected["tokens"] == str(config.num_tokens) and float(expected["teacher, seconds"]) >= 0
    assert list(tmp_path.glob("sensedict-*")) == []

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"w1 w2")))
    status, out, err = run(capsys, *command, "--dry-run", "--budget", 1)
    assert status == 2 and out == "" and "budget=1 is below one sense" in err


def test_distilling_prints_its_result_alone(capsys, texts, senses, teacher_folder, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    command = ["distill", "--teacher", teacher_folder, "--senses", senses, "--texts", tmp_path / "texts.txt"]
    command += [
        "--num-hidden-layers",
        1,
        "--epochs",
        2,
        "--logging-steps",
        1,
        "--use-cpu",
        "--output",
        tmp_path / "out",
    ]
    status, out, err = run(capsys, *command, "--dry-run", "--quiet")
    assert status == 0 and not (tmp_path / "out").exists()
    expected = facts(out)
    assert expected["steps"] == "4" and expected["texts"] == "60" and "training, seconds" in expected

    status, out, err = run(capsys, *command, "--quiet")
    assert status == 0 and len(out.splitlines()) == 1 and "'loss'" not in err
    assert out.startswith(f"{expected['student, parameters']} parameters and")
    status, out, err = run(capsys, *command, "--overwrite", "--seed", 1)
    assert status == 0 and len(out.splitlines()) == 1 and "'loss'" in err  # progress is on standard error


def test_inspecting_as_json_and_as_a_picture(capsys, texts, senses, teacher_folder, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    given = ["inspect", senses, "w25", "--texts", tmp_path / "texts.txt", "--teacher", teacher_folder]
    status, out, _ = run(capsys, *given, "--json", "--plot", tmp_path / "w25.svg")
    reports = json.loads(out)
    assert status == 0 and sum(report["share"] for report in reports) == pytest.approx(1)
    assert any("[w25]" in context for report in reports for context in report["contexts"])
    assert "<svg" in (tmp_path / "w25.svg").read_text()
    status, _, err = run(capsys, "inspect", senses, "w25", "--plot", tmp_path / "no.svg")
    assert status == 2 and "give texts" in err and not (tmp_path / "no.svg").exists()
    for wrong, message in (
        (("--plot", tmp_path / "w25.foo"), "cannot end in .foo"),
        (("--max-contexts", "-1"), "max_contexts=-1"),
    ):
        status, _, err = run(capsys, *given, *wrong)
        assert status == 2 and message in err and "Gathering" not in err


def test_models_speak_our_words(bert, texts):
    senses = build_sense_dictionary(bert, texts, budget=90)
    assert (
        repr(senses)
        == f"SenseEmbeddingModel({len(senses.table)} senses of width 16, float16, l2, layer -1 of tiny-bert)"
    )
    student = SKDStudentModel.from_teacher(bert, senses)
    assert student.eval() is student and "tiny-bert" in repr(student)
    with pytest.raises(ValueError, match="call the student with input_ids, not with inputs_embeds"):
        student(inputs_embeds=torch.zeros(1, 2, 16))
