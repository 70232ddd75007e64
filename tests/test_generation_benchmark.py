"""The benchmark of students that generate text."""

import json
import sys

import pytest

from benchmarks import generation


@pytest.mark.slow
def test_a_trial_is_recorded_and_continues(tmp_path, monkeypatch, capsys):
    methods = ["+ KL", "+ KL + MSE", "+ KL + senses (next)"]
    settings = ["--learning-rates", "0.001", "--sense-weights", "0.1", "--methods", *methods]
    monkeypatch.setattr(sys, "argv", ["generation", "--smoke", "--output", str(tmp_path), *settings])
    generation.main()
    first = capsys.readouterr().out
    assert all(f"| {method} | 0.001 |" in first for method in methods)
    study = json.loads((tmp_path / "generation.json").read_text())
    (entry,) = study["entries"].values()
    assert entry["teacher"]["smoke perplexity"] > 1 and entry["settings"]["smoke"]
    assert entry["+ KL"]["held out perplexity"] > 1 and "held out perplexity" not in entry["teacher"]
    continuations = (tmp_path / "continuations.md").read_text()
    assert continuations.count("   - + KL + senses (next): ") == generation.CONTINUED

    # What is done is not done again.
    monkeypatch.setattr(generation.Benchmark, "train_student", None)
    monkeypatch.setattr(generation.Benchmark, "score_model", None)
    generation.main()
    assert first.endswith(capsys.readouterr().out.strip().split("\n\n")[-1] + "\n")

    monkeypatch.setattr(sys, "argv", [*sys.argv, "--batch-size", "4"])
    with pytest.raises(ValueError, match="belongs to a run with other settings"):
        generation.main()
