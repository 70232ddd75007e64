"""The scores of evaluations in a card, and the cards of other libraries."""

import json
import shutil

import pytest
from huggingface_hub import ModelCard
from tiny_models import build_once

from sensedict_hf import SKDStudentModel
from sensedict_hf.cli import main


@pytest.fixture
def folder(bert, texts, tmp_path):
    folder = tmp_path / "my-student"
    SKDStudentModel.from_teacher(bert, build_once(bert, texts, budget=90)).save_pretrained(folder)
    return folder


@pytest.fixture
def pairs(texts, tmp_path):
    rows = [{"sentence1": a, "sentence2": b, "score": i} for i, (a, b) in enumerate(zip(texts[:9], texts[9:18]))]
    (tmp_path / "sts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "sts.jsonl"


def test_scores_are_added_to_the_card(folder, pairs, texts, tmp_path):
    path = folder / "README.md"
    path.write_text(path.read_text().replace("## Limits\n", "Written by hand.\n\n## Limits\n\n- By hand, too.\n"))
    evaluate = ["evaluate", "--model", str(folder), "--card", "--device", "cpu"]
    similarity = [*evaluate, "--task", "similarity", "--test", str(pairs), "--output", str(tmp_path / "scores.json")]
    assert main(similarity) == 0
    once = ModelCard.load(path)
    # Another task is added, the same one replaces its scores.
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(texts[:40])]
    (tmp_path / "topics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = str(tmp_path / "topics.jsonl")
    assert main([*evaluate, "--train", data, "--test", data]) == 0
    path.write_text(path.read_text().replace(str(once.data.eval_results[1].metric_value), "0.1234"))
    assert main(similarity) == 0
    assert main([*similarity, "--assignment", "none"]) == 0

    card = ModelCard.load(path)
    found = [(each.task_type, each.metric_type, each.metric_args) for each in card.data.eval_results]
    names, learned = ["spearman", "pearson", "texts_per_second"], {"trained on": f"{tmp_path.name}/topics.jsonl"}
    assert sorted(found, key=str) == sorted(
        [("text-classification", name, learned) for name in ("few_shot", "few_shot_std", "full", names[2])]
        + [("sentence-similarity", name, args) for name in names for args in (None, {"assignment": "none"})],
        key=str,
    )
    scores = json.loads((tmp_path / "scores.json").read_text())
    last = next(each for each in card.data.eval_results if each.metric_type == "pearson" and each.metric_args)
    assert last.metric_value == round(scores["pearson"], 4) and last.dataset_name == f"{tmp_path.name}/sts.jsonl"
    assert card.data.model_name == "my-student" and card.data.tags == once.data.tags
    assert "0.1234" not in card.content and str(tmp_path) not in card.content
    assert card.text.count("## Scores") == 1 and card.text.count("| task |") == 1
    assert card.text.count(f"| {last.metric_value} |") >= 1 and "Written by hand." in card.text
    assert card.text.index("## Scores") < card.text.index("## Limits") < card.text.index("By hand, too.")


def test_the_card_of_another_library_is_completed(folder):
    path = folder / "README.md"
    path.write_text("---\nlibrary_name: sentence-transformers\ntags:\n- generated_from_trainer\n---\n# Theirs\n")
    assert main(["card", str(folder)]) == 0
    card = ModelCard.load(path)
    assert "# Theirs" in card.text and card.text.count("trust_remote_code=True") == 3
    assert card.data.tags[0] == "generated_from_trainer" and "sensedict_hf" in card.data.tags
    assert card.data.library_name == "sentence-transformers" and card.data.license == "unknown"
    before = path.read_text()
    assert main(["card", str(folder)]) == 0 and path.read_text() == before
    path.unlink()
    assert main(["card", str(folder)]) == 0 and "## What it is" in path.read_text()


def test_other_models_have_no_such_card(teacher_folder, pairs, tmp_path, capsys):
    command = ["evaluate", "--task", "similarity", "--test", str(pairs), "--card", "--output", str(tmp_path / "out")]
    assert main([*command, "--model", str(teacher_folder)]) == 2
    assert "holds a bert model: only dictionaries and students" in capsys.readouterr().err
    assert main([*command, "--index", "index"]) == 2 and not (tmp_path / "out").exists()


def test_a_pattern_of_files_is_no_dataset_of_the_hub(folder, pairs, tmp_path):
    shutil.copy(pairs, tmp_path / "other.jsonl")
    main(
        ["evaluate", "--model", str(folder), "--task", "similarity", "--test", str(tmp_path / "oth*.jsonl"), "--card"]
    )
    results = ModelCard.load(folder / "README.md").data.eval_results
    name = f"{tmp_path.name}/oth*"
    assert {(result.dataset_type, result.dataset_name) for result in results} == {(name, f"{name}.jsonl")}


def test_files_of_one_name_in_different_folders_are_different_data(folder, pairs, tmp_path):
    for name in ("news", "forums"):
        (tmp_path / name).mkdir()
        shutil.copy(pairs, tmp_path / name / "test.jsonl")
        test = ["--test", str(tmp_path / name / "test.jsonl")]
        assert main(["evaluate", "--model", str(folder), "--task", "similarity", *test, "--card"]) == 0
    results = ModelCard.load(folder / "README.md").data.eval_results
    found = [(result.dataset_type, result.dataset_name) for result in results if result.metric_type == "spearman"]
    assert found == [(f"{name}/test", f"{name}/test.jsonl") for name in ("news", "forums")]
