"""The comparison of methods: vectors from disk, the cosine, the search of learning rates, and jobs."""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import AutoModel

from benchmarks.distillation.comparison import Comparison
from benchmarks.distillation.jobs import run_jobs
from benchmarks.distillation.methods import CachedTrainer, OutputTrainer
from benchmarks.distillation.tasks import load_task
from sensedict_hf import SKDStudentModel, SKDTrainer, SKDTrainingArguments, build_sense_dictionary


def train(kind, teacher, senses, folder, dataset, **settings):
    torch.manual_seed(0)
    student = SKDStudentModel.from_teacher(teacher, senses, num_hidden_layers=1)
    args = SKDTrainingArguments(
        str(folder), report_to="none", save_strategy="no", logging_steps=1, num_train_epochs=1, **settings
    )
    return kind(student, args, teacher=teacher, train_dataset=dataset)


@pytest.mark.parametrize("objective", ["mse", "sense", "sense+mse+sentence"])
def test_vectors_from_the_disk_train_as_the_teacher_does(bert, texts, tmp_path, objective):
    senses = build_sense_dictionary(bert, texts, budget=100)
    input_ids = [bert.tokenizer(text)["input_ids"] for text in texts]
    begins = np.cumsum([0, *map(len, input_ids)])
    rows = {"input_ids": input_ids, "labels": [[-1] * len(ids) for ids in input_ids], "begin": begins[:-1]}
    expected = train(SKDTrainer, bert, senses, tmp_path, texts, objective=objective)
    trainer = train(CachedTrainer, bert, senses, tmp_path, Dataset.from_dict(rows), objective=objective)
    trainer.read(bert, torch.cat([bert.last_hidden_state(torch.tensor([ids]))[0] for ids in input_ids]).numpy())
    for one in (expected, trainer):
        one.train()
    losses = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (expected, trainer)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

    trainer.is_cosine = True
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        own = trainer.model.eval()(batch["input_ids"], batch["attention_mask"], assignment="none").last_hidden_state
    cosines = F.cosine_similarity(own, batch["vectors"], dim=-1)[batch["attention_mask"].bool()]
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(1 - cosines.mean().item(), rel=1e-4)


@pytest.mark.parametrize("sense_rate", [0.0, 1e-2])
def test_the_output_is_trained_end_to_end(bert, texts, tmp_path, sense_rate):
    """The loss is that of the output half. The senses change only if they have a learning rate."""
    build_sense_dictionary(bert, texts, budget=100, output_dir=tmp_path / "senses")
    senses = AutoModel.from_pretrained(tmp_path / "senses", learn_senses=bool(sense_rate))
    input_ids = [bert.tokenizer(text)["input_ids"] for text in texts]
    begins = np.cumsum([0, *map(len, input_ids)])
    rows = {"input_ids": input_ids, "labels": [[-1] * len(ids) for ids in input_ids], "begin": begins[:-1]}
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1, assignment="soft", residual=0.5)
    settings = dict(report_to="none", save_strategy="no", logging_steps=1, learning_rate=1e-3, use_cpu=True)
    args = SKDTrainingArguments(str(tmp_path), **settings)
    vectors = torch.cat([bert.last_hidden_state(torch.tensor([ids]))[0] for ids in input_ids]).numpy()
    student.eval()
    trainer = OutputTrainer(sense_rate, student, args, Dataset.from_dict(rows), vectors)
    batch = next(iter(trainer.get_train_dataloader()))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    own = student(ids, mask, assignment="none").last_hidden_state
    output = (own + senses(ids, own, mask, "soft").hidden_states) / 2
    errors = (output - batch["vectors"])[mask.bool()].square().sum(-1).mean()
    weighted = errors * args.mse_weight / senses.config.distortion
    assert trainer.compute_loss(student, batch).item() > weighted.item()
    args.sentence_weight = 0.0
    torch.testing.assert_close(trainer.compute_loss(student, batch), weighted, rtol=1e-4, atol=1e-5)
    args.sentence_weight = 9.0

    before = student.senses.senses.detach().clone()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert torch.equal(student.senses.senses, before) == (not sense_rate)


@pytest.mark.parametrize(("peak", "tried"), [(2e-3, 3), (1e-3, 4), (4e-3, 4), (2.5e-4, 6), (1.6e-2, 6)])
def test_the_search_goes_on_beyond_its_ends(monkeypatch, peak, tried):
    asked = set()

    def held_out(self, title, name, key, learning_rate, layers):
        assert (title, name, key) == ("skd-2-search", f"{learning_rate:g}", "skd")
        asked.add(learning_rate)
        return {"raw": learning_rate, "half": -abs(np.log(learning_rate / peak))}

    monkeypatch.setattr(Comparison, "held_out", held_out)
    comparison = object.__new__(Comparison)
    comparison.options = argparse.Namespace(learning_rates=[1e-3, 2e-3, 4e-3])
    assert comparison.search("skd-sep", 2) == pytest.approx(peak) and len(asked) == tried


NOTES = """
import os
from pathlib import Path

class Notes:
    def note(self, name, seen):
        missing = [other for other in seen if not Path(other).exists()]
        Path(name).write_text(f"{os.getpid()} {missing}")
        if name == "late":
            raise TimeoutError
        if name == "wrong":
            raise ValueError("not to be lost")
"""


def test_texts_of_another_kind_are_kept_apart(tmp_path):
    sentence = "The tower was built of grey stone in 1891."
    for folder, texts in [
        ("wikipedia_en_sample", [f"{sentence} It fell."]),
        ("snips", ["play music", "book a table"]),
    ]:
        (tmp_path / folder).mkdir()
        rows = [json.dumps({"text": text, "label": str(number)}) for number, text in enumerate(texts)]
        for part in ("train", "test"):
            (tmp_path / folder / f"{part}.jsonl").write_text("\n".join(rows))
    comparison = Comparison.__new__(Comparison)
    comparison.load_task = load_task
    found = []
    for wikipedia in (True, False):
        comparison.options = argparse.Namespace(data=tmp_path, wikipedia=wikipedia, smoke=False)
        found.append((comparison.scope(["snips"]), comparison.texts(["snips"])))
    assert found == [("wikipedia", [sentence]), ("snips", ["play music", "book a table"])]


def test_jobs_share_the_steps(tmp_path, monkeypatch):
    """Each call is made once, in another process and after the step before. Only a TimeoutError is no error."""
    (tmp_path / "notes.py").write_text(NOTES)  # a module whose import is quick
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "made").mkdir()
    monkeypatch.chdir(tmp_path / "made")
    from notes import Notes

    first, second = [f"a{number}" for number in range(6)], ["b", "late"]
    with pytest.raises(ValueError, match="not to be lost"):
        steps = [
            [("note", name, ()) for name in first],
            [("note", name, tuple(first)) for name in second],
            [("note", "wrong", ())],
        ]
        run_jobs(Notes, dict(zip("123", steps)), 2)
    notes = {path.name: path.read_text().split(" ", 1) for path in Path().iterdir()}
    assert notes.keys() == {*first, *second, "wrong"} and {missing for _, missing in notes.values()} == {"[]"}
    assert str(os.getpid()) not in {process for process, _ in notes.values()}
