"""Builds that are killed, that several processes share, or that find something else in their folder."""

import dataclasses
import json
import multiprocessing
import os
import platform
import shutil
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from launching import launch, needs_fork
from safetensors.torch import load_file
from tiny_models import make_model, make_tokenizer

from sensedict_hf import Prompt, Teacher, build_sense_dictionary, find_occurrences, load_senses
from sensedict_hf.building import corpus as corpus_module
from sensedict_hf.building import corpus_files, fitting, gathering
from sensedict_hf.building.gathering import PlannedWindows, _join
from sensedict_hf.building.sampling import SamplingPlan
from sensedict_hf.building.tensor_files import write_tensor_file
from sensedict_hf.cli import main

PACKAGE = str(Path(corpus_module.__file__).parent)
SETTINGS = dict(budget=90, max_samples_per_token=15, batch_size=8)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def build(teacher, texts, folder, kill_at=None, **settings):
    """Builds in a forked process with one thread. Kills it when it has executed `kill_at` lines of the package.

    Returns how many lines were executed, or None if the process was killed.
    """
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)

    def run():
        torch.set_num_threads(1)
        corpus_files.COMMIT_SECONDS = gathering.MARK_SECONDS = 0
        lines = 0

        def trace(frame, event, _):
            nonlocal lines
            if event == "call" and not frame.f_code.co_filename.startswith(PACKAGE):
                return None
            lines += event == "line"
            if kill_at is not None and lines >= kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        threading.settrace(trace)
        sys.settrace(trace)
        build_sense_dictionary(teacher, texts, output_dir=folder, **{**SETTINGS, **settings})
        sys.settrace(None)
        sender.send(lines)

    process = fork.Process(target=run)
    process.start()
    process.join(120)
    return receiver.recv() if receiver.poll() else None


@pytest.fixture(autouse=True)
def no_threads_of_the_tokenizer(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork


@needs_fork
@pytest.mark.parametrize(
    "settings", [{}, {"budget": None, "senses_per_token": 3, "keep_samples": True}], ids=["budget", "senses_per_token"]
)
@pytest.mark.slow
def test_killed_anywhere_the_same_call_ends_in_the_same_bytes(bert, texts, tmp_path, monkeypatch, settings):
    monkeypatch.setattr(corpus_module, "BATCH_TEXTS", 10)
    monkeypatch.setattr("sensedict_hf.building.fitting.BLOCK_ELEMENTS", 1000)
    lines = build(bert, texts, tmp_path / "whole", **settings)
    expected = contents(tmp_path / "whole")
    assert {"model.safetensors", "config.json", "manifest.json", "README.md", "tokenizer.json"} <= set(expected)
    assert ("samples.safetensors" in expected) == settings.get("keep_samples", False) and "building" not in expected
    for number in range(12):
        folder = tmp_path / str(number)
        kill_at = lines * (2 * number + 1) // 24
        assert build(bert, texts, folder, kill_at, **settings) is None, "it was not killed"
        again = build(bert, texts, folder, kill_at // 2, **settings)  # and once more, unless it had got far
        if again is None:
            again = build(bert, texts, folder, **settings)
        assert again is not None and contents(folder) == expected, f"killed at line {kill_at} of {lines}"


def test_finished_work_is_not_done_again(bert, texts, tmp_path, monkeypatch):
    calls = []
    original = type(bert).hidden_states

    def hidden_states(self, input_ids, attention_mask=None, layer=-1):
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(input_ids.shape)
        return original(self, input_ids, attention_mask, layer)

    monkeypatch.setattr(gathering, "MARK_SECONDS", 0)
    monkeypatch.setattr(type(bert), "hidden_states", hidden_states)
    with pytest.raises(KeyboardInterrupt):
        build_sense_dictionary(bert, texts, output_dir=tmp_path, **SETTINGS)
    done = [shape for shape in calls if shape[0] > 1]  # without the probes, of one text
    calls[:] = [None] * 6
    senses = build_sense_dictionary(bert, texts, output_dir=tmp_path, **SETTINGS)
    rest = [shape for shape in calls[6:] if shape[0] > 1]
    assert len(done) + len(rest) == 8 and len(done) >= 3  # 60 texts in batches of 8
    monkeypatch.setattr(type(bert), "hidden_states", None)  # a finished dictionary needs no teacher at all
    again = build_sense_dictionary(bert, texts, output_dir=tmp_path, **SETTINGS)
    assert torch.equal(again.senses, senses.senses)


def interrupt(bert, texts, folder, monkeypatch, stage="gather_samples", **settings):
    with monkeypatch.context() as patch:
        patch.setattr(f"sensedict_hf.building.build.{stage}", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_sense_dictionary(bert, texts, output_dir=folder, **SETTINGS, **settings)


@pytest.mark.parametrize("is_finished", [False, True])
def test_something_else_in_the_folder_is_refused_by_name(bert, texts, tmp_path, monkeypatch, is_finished):
    interrupt(bert, texts, tmp_path, monkeypatch)
    if is_finished:
        build_sense_dictionary(bert, texts, output_dir=tmp_path, **SETTINGS)
    kind = "a dictionary" if is_finished else "an unfinished build"
    with pytest.raises(
        ValueError, match=f"{kind} with other settings: budget was 90, is 100; seed was 0, is 1; give the same"
    ):
        build_sense_dictionary(bert, texts, output_dir=tmp_path, **{**SETTINGS, "budget": 100, "seed": 1})
    with pytest.raises(ValueError, match="corpus was .*, is" if is_finished else "its first 60 texts were others"):
        build_sense_dictionary(bert, texts[::-1], output_dir=tmp_path, **SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr("sensedict_hf.building.settings.version", lambda name: "9" if name == "torch" else "1")
        with pytest.raises(ValueError, match="torch was .*, is 9"):
            build_sense_dictionary(bert, texts, output_dir=tmp_path, **SETTINGS)
    weight = bert.model.encoder.layer[0].output.dense.weight.data
    weight[3, 5] += 1e-3
    with pytest.raises(ValueError, match="teacher_fingerprint was .*, is"):
        build_sense_dictionary(bert, texts, output_dir=tmp_path, **SETTINGS)
    changed = build_sense_dictionary(bert, texts[::-1], output_dir=tmp_path, overwrite=True, **SETTINGS)
    expected = build_sense_dictionary(bert, texts[::-1], **SETTINGS)
    assert torch.equal(changed.senses, expected.senses)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.json is not the file that the build has written"):
        build_sense_dictionary(bert, texts[::-1], output_dir=tmp_path, **SETTINGS)


def test_settings_can_be_corrected_before_the_plan(bert, texts, tmp_path):
    """A number that turned out too small, after the texts had been tokenized."""
    with pytest.raises(ValueError, match="budget=5 is below one sense for each of the 30"):
        build_sense_dictionary(bert, texts, output_dir=tmp_path, budget=5)
    assert len(build_sense_dictionary(bert, texts, output_dir=tmp_path, budget=50).senses) == 50


def test_a_model_of_other_origin_is_not_overwritten(bert, texts, tmp_path):
    bert.model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a model that no build has put there"):
        build_sense_dictionary(bert, texts, output_dir=tmp_path, **SETTINGS)


def test_two_builds_in_one_folder_exclude_each_other(bert, texts, tmp_path):
    for process in (0, 1):  # the second one has outlived the first one of its build
        with FileLock(tmp_path / f"building-{process}.lock"), pytest.raises(ValueError, match="another process is"):
            build_sense_dictionary(bert, texts, output_dir=tmp_path, **SETTINGS)
    (tmp_path / "building-1.lock").touch()  # one that has not
    build_sense_dictionary(bert, texts, output_dir=tmp_path, **SETTINGS)
    assert not list(tmp_path.glob("*.lock"))


def test_too_little_room_is_found_before_the_teacher_runs(bert, texts, tmp_path, monkeypatch):
    """The largest number of samples per token that fits is named, and fits."""
    room = 60_000
    usage = type("Usage", (), {"free": room})
    monkeypatch.setattr("sensedict_hf.building.planning.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(
        ValueError, match=r"max_samples_per_token=1000 needs .* GB are free: max_samples_per_token=(\d+) fits"
    ) as error:
        build_sense_dictionary(bert, texts, output_dir=tmp_path, budget=90)
    fits = int(str(error.value).split("max_samples_per_token=")[-1].split()[0])
    with pytest.raises(ValueError, match="needs"):
        build_sense_dictionary(bert, texts, output_dir=tmp_path, budget=90, max_samples_per_token=fits + 1)
    build_sense_dictionary(bert, texts, output_dir=tmp_path, budget=90, max_samples_per_token=fits)
    usage.free = 10
    with pytest.raises(ValueError, match="not even max_samples_per_token=1 fits"):
        build_sense_dictionary(bert, texts, budget=90)


def test_what_is_left_of_a_removed_build_is_not_taken_for_one(bert, texts, tmp_path, monkeypatch):
    """Killed while the stages were being removed: some are still there, some are not."""
    expected = build_sense_dictionary(bert, texts, **SETTINGS)
    for removed in ("samples.safetensors", "corpus"):
        folder = tmp_path / removed
        with monkeypatch.context() as patch:
            patch.setattr("sensedict_hf.building.workspace.shutil.rmtree", lambda path, **kwargs: None)
            build_sense_dictionary(bert, texts, output_dir=folder, **SETTINGS)
        stages = folder / "building.removed"
        shutil.rmtree(stages / removed) if (stages / removed).is_dir() else (stages / removed).unlink()
        (folder / "config.json").unlink()
        again = build_sense_dictionary(bert, texts, output_dir=folder, **SETTINGS, overwrite=True)
        assert torch.equal(again.senses, expected.senses) and not stages.exists()


def test_overwriting(bert, texts, tmp_path):
    build_sense_dictionary(bert, texts, output_dir=tmp_path, keep_samples=True, **SETTINGS)
    same = build_sense_dictionary(bert, texts, output_dir=tmp_path, keep_samples=True, overwrite=True, **SETTINGS)
    other = build_sense_dictionary(bert, texts, output_dir=tmp_path, overwrite=True, **{**SETTINGS, "seed": 1})
    assert not torch.equal(other.senses, same.senses)
    assert not (tmp_path / "samples.safetensors").exists(), "files of the dictionary that was overwritten are not left"
    one_shot = build_sense_dictionary(bert, (text for text in texts), output_dir=tmp_path, overwrite=True, **SETTINGS)
    assert torch.equal(one_shot.senses, same.senses)


def test_a_corpus_that_can_be_read_only_once_is_not_begun_in_the_middle(bert, texts, tmp_path, monkeypatch):
    interrupt(bert, texts, tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="its first 60 texts were others"):
        build_sense_dictionary(
            bert, (text for text in reversed(texts)), output_dir=tmp_path, overwrite=True, **SETTINGS
        )


@pytest.mark.parametrize("name", ["README.md", "vocab.txt", "pytorch_model.bin", "prompts.py", "modules.json"])
def test_files_of_other_origin_are_not_replaced(bert, texts, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"holds a {name} that no build has put there"):
        build_sense_dictionary(bert, texts, output_dir=tmp_path, **SETTINGS)
    assert (tmp_path / name).read_text() == "mine"


def test_a_build_of_another_key_is_not_continued(texts, tmp_path, monkeypatch):
    teacher = Teacher(make_model("llama"), make_tokenizer(), name="tiny", max_window=64)
    interrupt(teacher, texts, tmp_path, monkeypatch, key="next")
    with pytest.raises(ValueError, match="key was next, is None"):
        build_sense_dictionary(teacher, texts, output_dir=tmp_path, **SETTINGS)


def test_a_finished_dictionary_leaves_a_folder_of_the_name_of_its_stages(bert, texts, tmp_path):
    build_sense_dictionary(bert, texts, output_dir=tmp_path, **SETTINGS)
    (tmp_path / "building").mkdir()
    (tmp_path / "building" / "thesis.txt").write_text("years of work")
    build_sense_dictionary(bert, texts, output_dir=tmp_path, **SETTINGS)
    assert (tmp_path / "building" / "thesis.txt").exists()


def test_several_chat_templates_are_files_of_a_dictionary(bert, texts, tmp_path):
    bert.tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    build_sense_dictionary(bert, texts, output_dir=tmp_path, **SETTINGS)
    again = build_sense_dictionary(bert, texts, output_dir=tmp_path, **SETTINGS)  # compares all files
    assert again.tokenizer.chat_template == bert.tokenizer.chat_template


def test_windows_too_short_and_a_layer_that_is_not_there_are_found_before_the_texts_are_read(bert, tmp_path):
    def texts():
        raise AssertionError("the texts are read")
        yield

    prompted = dataclasses.replace(bert, prompt=Prompt("w1 w2 w3 w4 {text}"))
    for wrong, message in (({"layer": 99}, "99"), ({"max_length": 8}, "max_length=8 leaves 2 tokens for a text")):
        with pytest.raises(ValueError, match=message):
            build_sense_dictionary(prompted, texts(), output_dir=tmp_path, **SETTINGS, **wrong)


def test_after_an_empty_corpus_another_can_be_given(bert, texts, tmp_path):
    with pytest.raises(ValueError, match="corpus is empty"):
        build_sense_dictionary(bert, ["", " "], output_dir=tmp_path, **SETTINGS)
    build_sense_dictionary(bert, texts, output_dir=tmp_path, **SETTINGS)


def test_another_config_of_the_teacher_is_another_teacher(bert, texts, tmp_path):
    build_sense_dictionary(bert, texts, output_dir=tmp_path, **SETTINGS)
    bert.model.config.hidden_act = "relu"
    with pytest.raises(ValueError, match="teacher_fingerprint was"):
        build_sense_dictionary(bert, texts, output_dir=tmp_path, **SETTINGS)


@needs_fork
def test_a_process_that_dies_ends_the_others(texts, teacher_folder, tmp_path):
    """Without a launcher, which would end them too."""
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    build = ["build", "--teacher", teacher_folder, "--texts", tmp_path / "texts.txt", "--output", tmp_path / "out"]

    def run(number):
        if number == 1:
            gathering.window_vectors = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
        return main([str(part) for part in build])

    first, second = launch(run, tmp_path)
    assert second.code == -signal.SIGKILL
    assert first.code == 2 and "another process of this launch has ended" in first.errors


@needs_fork
@pytest.mark.parametrize("hosts", [1, 2])
def test_two_processes_make_the_same_bytes(texts, teacher_folder, tmp_path, monkeypatch, hosts):
    """On one machine, and with the files of two."""
    monkeypatch.setattr(fitting, "BLOCK_ELEMENTS", 1000)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    build = ["build", "--teacher", str(teacher_folder), "--texts", str(tmp_path / "texts.jsonl"), "--keep-samples"]
    build += ["--budget", "90", "--max-samples-per-token", "15", "--batch-size", "8"]
    assert main([*build, "--output", str(tmp_path / "one")]) == 0

    def run(number):
        platform.node = lambda: f"host{number % hosts}"
        status = main([*build, "--output", str(tmp_path / "two")])
        if number:  # one process alone reads texts
            assert find_occurrences(load_senses(tmp_path / "two"), teacher_folder, "w5", ["w5 w1", "w2"]).total == 1
        return status

    ended = launch(run, tmp_path)
    assert [process.code for process in ended] == [0, 0], ended
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sum(process.output.count("90 senses of 30 tokens") for process in ended) == 1


def test_what_a_lost_machine_has_half_written_is_not_joined(tmp_path):
    """Machine 1 lost its power in a batch, which machine 0 has run again; another batch of it is done."""
    slots, ends = np.array([3, 0, 1, 2]), np.arange(4)
    windows = PlannedWindows(*[ends] * 3, first=ends, last=ends + 1)
    plan = SamplingPlan(*[slots] * len(SamplingPlan.__dataclass_fields__))
    right = torch.arange(1.0, 17.0).view(4, 4)
    for machine, rows, done in [(0, [0, 1], [True, True, False, False]), (1, [1, 2, 3], [False, False, True, True])]:
        samples = torch.zeros(4, 4)
        samples[slots[rows]] = right[slots[rows]]
        samples[slots[1], 2:] *= 1 - machine  # the batch that is torn
        write_tensor_file(tmp_path / f"samples-{machine}.safetensors", {"samples": samples})
        write_tensor_file(tmp_path / f"gathered-{machine}.safetensors", {"done": torch.tensor(done)})
    _join(tmp_path, plan, windows, batch_size=1)
    assert torch.equal(load_file(tmp_path / "samples.safetensors")["samples"], right)
