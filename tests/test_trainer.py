import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from datasets import Dataset, IterableDataset, concatenate_datasets
from peft import LoraConfig, get_peft_model
from tiny_models import SIZES, WORDS, build_once
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    EarlyStoppingCallback,
    TrainingArguments,
)
from transformers.utils import logging

from sensedict_hf import (
    Prompt,
    SKDStudentModel,
    SKDTrainer,
    SKDTrainingArguments,
    build_sense_dictionary,
    encode_senses,
)
from sensedict_hf.cli import main


@pytest.fixture
def senses(bert, texts):
    return build_once(bert, texts, budget=120)


def make_trainer(bert, senses, texts, folder, teacher=True, **settings):
    torch.manual_seed(0)
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    settings = {
        "objective": "sense",
        "num_train_epochs": 1,
        "save_strategy": "no",
        "per_device_train_batch_size": 20,
        "logging_steps": 1,
        "seed": 0,
    } | settings
    args = SKDTrainingArguments(str(folder), report_to="none", disable_tqdm=True, **settings)
    return SKDTrainer(student, args, teacher=bert if teacher else None, train_dataset=texts)


def first_loss(trainer):
    trainer.train()
    return trainer.state.log_history[0]["loss"]


def test_of_errors_the_smallest_is_the_best(tmp_path):
    for name, greater in (
        ("quantization_error", False),
        ("sense_accuracy", True),
        ("loss", False),
        ("eval_perplexity", False),
    ):
        settings = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)
        args = SKDTrainingArguments(str(tmp_path), **settings, load_best_model_at_end=True, metric_for_best_model=name)
        assert args.greater_is_better == greater


@pytest.mark.parametrize("objective", ["sense", "mse", "sense+mse"])
def test_loss_is_the_formula(bert, senses, texts, tmp_path, objective):
    """One step over all texts without dropout, against a loop over positions."""
    settings = dict(objective=objective, temperature=0.7, mse_weight=0.3, per_device_train_batch_size=60, max_steps=1)
    trainer = make_trainer(bert, senses, texts, tmp_path, **settings)
    student, unit = trainer.model.eval(), senses.config.distortion
    sense_losses, distances = [], []
    for text in texts:
        ids = torch.tensor([bert.tokenizer(text)["input_ids"]])
        targets = bert.last_hidden_state(ids)[0]
        with torch.no_grad():
            vectors = student(ids).student_hidden_state[0]
        for token, vector, target in zip(ids[0].tolist(), vectors, targets):
            own = senses.senses_of(token).float()
            label = (target - own).square().sum(-1).argmin()
            sense_losses.append(F.cross_entropy(-(vector - own).square().sum(-1) / (0.7 * unit), label))
            distances.append((vector - target).square().sum() / unit)
    sense, distance = torch.stack(sense_losses).mean().item(), torch.stack(distances).mean().item()
    expected = {"sense": sense, "mse": distance, "sense+mse": sense + 0.3 * distance}[objective]
    assert first_loss(trainer) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("objective", ["sense", "mse"])
def test_training_learns(bert, senses, texts, tmp_path, objective):
    trainer = make_trainer(bert, senses, texts, tmp_path, objective=objective, num_train_epochs=25, learning_rate=3e-3)
    for parameter in trainer.model.parameters():  # a student that has forgotten its teacher
        parameter.data += 0.3 * torch.randn_like(parameter)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert any("sense_accuracy" in entry for entry in trainer.state.log_history) == (objective == "sense")
    if objective == "sense":
        accuracies = [entry["sense_accuracy"] for entry in trainer.state.log_history if "sense_accuracy" in entry]
        assert sum(accuracies[-3:]) > 1.1 * sum(accuracies[:3])
    trainer.model.save_pretrained(tmp_path / "student")
    loaded = AutoModel.from_pretrained(tmp_path / "student")
    assert loaded.config.objective == objective
    assert loaded.config.default_assignment == ("none" if objective == "mse" else "soft")
    assert torch.equal(loaded.senses.senses, senses.senses)


def test_the_teachers_senses_are_encoded_once_and_can_be_kept(bert, senses, texts, tmp_path):
    encoded = encode_senses(bert, senses, texts)
    row = encoded[3]
    ids = torch.tensor([row["input_ids"]])
    assert row["labels"] == senses(ids, bert.last_hidden_state(ids)).sense_ids[0].tolist()
    losses = [
        first_loss(make_trainer(bert, senses, data, tmp_path, teacher))
        for data, teacher in [(texts, True), (encoded, False)]
    ]
    assert losses[0] == losses[1]


def test_accumulated_uneven_batches_are_one_batch(bert, senses, texts, tmp_path):
    whole = make_trainer(bert, senses, texts, tmp_path, per_device_train_batch_size=60)
    parts = make_trainer(bert, senses, texts, tmp_path, per_device_train_batch_size=15, gradient_accumulation_steps=4)
    assert first_loss(whole) == pytest.approx(first_loss(parts), rel=1e-4)
    for (name, one), other in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


def test_evaluation_is_a_mean_over_positions(bert, senses, texts, tmp_path):
    trainer = make_trainer(bert, senses, texts, tmp_path, per_device_eval_batch_size=7)
    metrics = trainer.evaluate(encode_senses(bert, senses, texts[:33]))
    right = known = total = loss = error = 0
    for text in texts[:33]:
        ids = torch.tensor([bert.tokenizer(text)["input_ids"]])
        output, theirs = (
            trainer.model.eval()(ids, assignment="hard"),
            senses(ids, bert.last_hidden_state(ids)).sense_ids,
        )
        right, known = right + int((output.sense_ids == theirs).sum()), known + ids.numel()
        error += (output.student_hidden_state - output.last_hidden_state).square().sum().item()
        for token, label, vector in zip(ids[0].tolist(), theirs[0], output.student_hidden_state[0]):
            scores = -(vector - senses.senses_of(token).float()).square().sum(-1) / (0.15 * senses.config.distortion)
            loss, total = loss + F.cross_entropy(scores, label).item(), total + 1
    assert metrics["eval_sense_accuracy"] == pytest.approx(right / known)
    assert metrics["eval_loss"] == pytest.approx(loss / total, rel=1e-3)
    assert metrics["eval_quantization_error"] == pytest.approx(error / total / senses.config.distortion, rel=1e-3)
    assert metrics["eval_coverage"] == 1


def test_a_step_without_senses_changes_nothing(bert, texts, tmp_path):
    rare = build_sense_dictionary(bert, [" ".join(WORDS[:2])], senses_per_token=1)
    for token in (2, 3):  # as if they too had none
        rare.offsets[token + 1 :] -= len(rare.senses_of(token))
    trainer = make_trainer(bert, rare, ["w20 w21", "w22"], tmp_path, per_device_train_batch_size=1)
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert all(torch.equal(before[name], parameter) for name, parameter in trainer.model.named_parameters())
    with pytest.raises(ValueError, match="no position that the objective counts: pass more or longer texts"):
        trainer.evaluate(encode_senses(bert, rare, ["w20", "w21"]))


def test_labels_of_another_dictionary_or_kind_are_refused(bert, senses, texts, tmp_path):
    other = build_sense_dictionary(bert, texts, budget=120, seed=0, max_samples_per_token=20)
    for data, settings, message in [
        (encode_senses(bert, other, texts), {}, "encoded with senses="),
        (encode_senses(bert, senses, texts, only_tokens=True), {}, "encoded with only_tokens=True, here it is False"),
        (
            encode_senses(replace(bert, prompt=Prompt("w1 {text}")), senses, texts),
            {},
            "encoded with prompt={'template': 'w1 {text}'.*, here it is None",
        ),
        (encode_senses(bert, senses, texts), {"label_top_k": 3}, "encoded with top_k=1, here it is 3"),
        (
            encode_senses(bert, senses, texts, top_k=3),
            {"label_top_k": 3, "label_temperature": 1.0},
            "temperature=0.15, here it is 1.0",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            make_trainer(bert, senses, data, tmp_path, **settings)
    make_trainer(
        bert, senses, encode_senses(bert, other, texts), tmp_path, objective="sense+mse"
    )  # labels are made beside


@pytest.mark.parametrize("objective", ["sense", "mse"])
def test_labels_that_do_not_say_what_they_are_of(bert, senses, texts, tmp_path, objective):
    """Tags of words, or senses of several dictionaries, are never taken for senses."""
    encoded = encode_senses(bert, senses, texts)
    tagged = Dataset.from_dict(
        {"input_ids": encoded["input_ids"], "labels": [[-100] * len(ids) for ids in encoded["input_ids"]]}
    )
    other = build_sense_dictionary(bert, texts, budget=100)
    encoded.to_parquet(tmp_path / "encoded.parquet")
    mixed = concatenate_datasets([encoded, encode_senses(bert, other, texts)])
    for data in (tagged, mixed, Dataset.from_parquet(str(tmp_path / "encoded.parquet"))):
        with pytest.raises(ValueError, match="does not tell how they were made, and has no column 'text'"):
            make_trainer(bert, senses, data, tmp_path, objective=objective)
    trainer = make_trainer(bert, senses, tagged.add_column("text", texts), tmp_path, objective=objective)
    assert len(trainer.train_dataset) == len(texts)
    assert max(max(labels) for labels in trainer.train_dataset["labels"]) >= (0 if objective == "sense" else -1)
    twice = concatenate_datasets([encoded.select(range(9)), encoded.select(range(9, 60)).shuffle(seed=0)])
    assert (
        make_trainer(bert, senses, twice, tmp_path, teacher=objective == "mse", objective=objective).train_dataset
        is twice
    )


@pytest.mark.parametrize("objective", ["mse", "sentence"])
def test_regression_is_evaluated_by_senses_too(bert, senses, texts, tmp_path, objective):
    names = ("eval_sense_accuracy", "eval_quantization_error", "eval_coverage")
    one = make_trainer(bert, senses, texts, tmp_path).evaluate(encode_senses(bert, senses, texts[:9]))
    other = make_trainer(bert, senses, texts, tmp_path, objective=objective).evaluate(texts[:9])
    assert [one[name] for name in names] == pytest.approx([other[name] for name in names])
    assert one["eval_loss"] != pytest.approx(other["eval_loss"])


def test_streams_can_be_evaluated_on(bert, senses, texts, tmp_path):
    data = Dataset.from_dict({"text": texts[:9]})
    expected = make_trainer(bert, senses, texts, tmp_path).evaluate(encode_senses(bert, senses, texts[:9]))
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    args = SKDTrainingArguments(str(tmp_path), report_to="none", eval_strategy="epoch", objective="sense")
    for eval_dataset, prefix in [
        (data.to_iterable_dataset(), "eval_"),
        ({"a": data.to_iterable_dataset()}, "eval_a_"),
    ]:
        trainer = SKDTrainer(student, args, teacher=bert, train_dataset=texts, eval_dataset=eval_dataset)
        metrics = trainer.evaluate()
        for name in ("loss", "sense_accuracy", "coverage"):
            assert metrics[prefix + name] == pytest.approx(expected["eval_" + name], rel=1e-4)
    with pytest.raises(ValueError, match="eval_strategy='epoch' needs an eval_dataset"):
        SKDTrainer(student, args, teacher=bert, train_dataset=texts)


def test_coverage_is_the_share_of_tokens_with_senses(bert, texts, tmp_path):
    rare = build_sense_dictionary(bert, [" ".join(WORDS[14:])], senses_per_token=1)
    metrics = make_trainer(bert, rare, texts, tmp_path).evaluate(encode_senses(bert, rare, texts))
    ids = [token for text in texts for token in bert.tokenizer(text)["input_ids"]]
    covered = [token for token in ids if len(rare.senses_of(token))]
    assert 0.5 < metrics["eval_coverage"] < 1 and metrics["eval_coverage"] == pytest.approx(len(covered) / len(ids))


def test_soft_labels_are_the_formula(bert, senses, texts, tmp_path):
    settings = dict(label_top_k=100, label_temperature=0.9, temperature=0.7)
    trainer = make_trainer(bert, senses, texts, tmp_path, **settings)
    unit, loss, total = senses.config.distortion, 0.0, 0
    for text in texts[:20]:
        ids = torch.tensor([bert.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            vectors = trainer.model.eval()(ids).student_hidden_state[0]
        for token, vector, target in zip(ids[0].tolist(), vectors, bert.last_hidden_state(ids)[0]):
            own = senses.senses_of(token).float()
            scores = [
                -(v - own).square().sum(-1) / (temperature * unit) for v, temperature in ((vector, 0.7), (target, 0.9))
            ]
            loss += F.cross_entropy(scores[0], scores[1].softmax(-1)).item()
            total += 1
    encoded = encode_senses(bert, senses, texts[:20], top_k=100, temperature=0.9)
    assert trainer.evaluate(encoded)["eval_loss"] == pytest.approx(loss / total, rel=2e-3)


@pytest.mark.parametrize("objective", ["sense", "sense+sentence"])
def test_streamed_texts_give_the_same_training(bert, senses, texts, tmp_path, objective):
    texts = [" ".join(WORDS * 3), *texts]
    data = Dataset.from_dict({"text": texts})
    losses = []
    for texts in (data, data.to_iterable_dataset()):
        settings = dict(
            objective=objective, max_steps=3, max_length=40, label_top_k=3, train_sampling_strategy="sequential"
        )
        trainer = make_trainer(bert, senses, texts, tmp_path, **settings)
        trainer.train()
        logs = [
            {name: value for name, value in entry.items() if name in LOGGED}
            for entry in trainer.state.log_history[:-1]
        ]
        losses.append(logs)
    for one, other in zip(*losses, strict=True):
        assert one == pytest.approx(other, rel=1e-3) and one["coverage"] == 1


@pytest.mark.parametrize("objective", ["mse", "sense+mse+sentence"])
def test_cached_vectors_give_the_same_training(bert, senses, texts, tmp_path, objective):
    # One text has several windows; texts differ in length.
    texts = [" ".join(WORDS * 3), *texts]
    settings = dict(
        objective=objective, max_steps=4, max_length=40, label_top_k=3, train_sampling_strategy="sequential"
    )
    weights = []
    for name, cached in (("each", {}), ("once", {"cache_vectors": True})):
        trainer = make_trainer(bert, senses, texts, tmp_path / name, **settings, **cached)
        assert (trainer.teacher is None) == bool(cached)
        trainer.train()
        weights.append([entry for entry in trainer.state.log_history if "grad_norm" in entry])
    for one, other in zip(*weights, strict=True):
        names = one.keys() & set(LOGGED)
        assert {name: one[name] for name in names} == pytest.approx({name: other[name] for name in names}, rel=1e-2)

    # The same vectors without a teacher, and through processes that load data.
    encoded = encode_senses(bert, senses, texts, max_length=40, keep_vectors=True)
    assert len(encoded[0]["vectors"]) == 16 * len(encoded[0]["input_ids"])
    again = make_trainer(bert, senses, encoded, tmp_path / "given", teacher=False, **settings)
    rows = list(again.train_dataset.select(range(3)))
    batch = pickle.loads(pickle.dumps(again.data_collator))(rows)
    with torch.inference_mode():
        expected = bert.hidden_states(batch["input_ids"], batch["attention_mask"]).clone()
    is_there = batch["attention_mask"].bool()
    torch.testing.assert_close(batch["vectors"][is_there], expected[is_there], atol=2e-3, rtol=1e-3)
    assert (batch["vectors"][~is_there] == 0).all()
    again.train()
    assert again.state.log_history[0]["loss"] == pytest.approx(weights[1][0]["loss"])


def test_cached_vectors_that_cannot_be_used_are_refused(bert, senses, texts, tmp_path):
    stream = Dataset.from_dict({"text": texts}).to_iterable_dataset()
    without = encode_senses(bert, senses, texts)
    with pytest.raises(ValueError, match="cache_vectors=True with a dataset that has no vectors"):
        make_trainer(bert, senses, without, tmp_path, objective="mse", max_steps=2, cache_vectors=True)
    with pytest.raises(ValueError, match="cache_vectors=True on a stream"):
        make_trainer(bert, senses, stream, tmp_path, objective="mse", max_steps=2, cache_vectors=True)
    other = build_sense_dictionary(bert, texts, budget=60)
    encoded = encode_senses(bert, other, texts, keep_vectors=True)
    with pytest.raises(ValueError, match="encoded with senses="):
        make_trainer(bert, senses, encoded, tmp_path, objective="mse", teacher=False)
    with torch.no_grad():
        bert.model.embeddings.LayerNorm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="for text '.*float16 cannot hold"):
        encode_senses(bert, senses, texts, keep_vectors=True)


LOGGED = ("loss", "grad_norm", "sense_accuracy", "quantization_error", "coverage")


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_sentence_loss_is_the_formula(bert, senses, texts, tmp_path, pooling):
    trainer = make_trainer(bert, senses, texts, tmp_path, objective="sentence")
    trainer.student.config.pooling = pooling
    loss, total = 0.0, 0
    for text in texts[:20]:
        ids = torch.tensor([bert.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            vectors = trainer.model.eval()(ids).student_hidden_state[0]
        pooled = [
            {"mean": x.mean(0), "cls": x[0], "last": x[-1]}[pooling] for x in (vectors, bert.last_hidden_state(ids)[0])
        ]
        loss += ids.numel() * (pooled[0] - pooled[1]).square().sum().item() / senses.config.distortion
        total += ids.numel()
    assert trainer.evaluate(texts[:20])["eval_loss"] == pytest.approx(loss / total, rel=1e-3)


@pytest.mark.parametrize(
    ("step", "strategy"), [(2, "group_by_length"), (4, "group_by_length"), (4, "random"), (4, "sequential")]
)
def test_a_resumed_run_is_the_straight_one(bert, senses, texts, tmp_path, monkeypatch, step, strategy):
    """From the middle of an epoch, to the last bit, with dropout: the random state must be restored too."""
    monkeypatch.setattr("sensedict_hf.distillation.trainer.without_dropout", nullcontext)
    settings = dict(num_train_epochs=2, per_device_train_batch_size=10, save_strategy="steps", save_steps=1)
    settings |= dict(gradient_accumulation_steps=2, objective="sense+mse", train_sampling_strategy=strategy)
    straight = make_trainer(bert, senses, texts, tmp_path / "straight", **settings)
    straight.train()
    assert straight.state.global_step == 6
    for folder in (tmp_path / "straight").glob("checkpoint-*"):
        if folder.name != f"checkpoint-{step}":
            shutil.rmtree(folder)
    resumed = make_trainer(bert, senses, texts, tmp_path / "straight", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.log_history[:-1] == straight.state.log_history[:-1] and resumed.state.global_step == 6
    for (name, one), other in zip(straight.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_stream_that_ends_begins_again(bert, senses, texts, tmp_path):
    """Also in the middle of an accumulation, and after a resumption."""
    settings = dict(max_steps=4, per_device_train_batch_size=10, gradient_accumulation_steps=4, save_strategy="steps")
    settings |= dict(save_steps=1, objective="sense+mse", train_sampling_strategy="sequential")
    stream = Dataset.from_dict({"text": texts}).to_iterable_dataset()
    trainers = {
        "listed": make_trainer(bert, senses, texts * 3, tmp_path / "listed", **settings),
        "streamed": make_trainer(bert, senses, stream, tmp_path / "streamed", **settings),
        "resumed": make_trainer(bert, senses, stream, tmp_path / "resumed", **settings),
    }
    for name, trainer in trainers.items():
        last = tmp_path / "streamed" / "checkpoint-2" if name == "resumed" else None
        trainer.train(resume_from_checkpoint=last)
    listed, streamed, resumed = trainers.values()
    losses = [[entry["loss"] for entry in each.state.log_history[:-1]] for each in (listed, streamed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and len(losses[0]) == 4
    assert resumed.state.log_history[:-1] == streamed.state.log_history[:-1]
    for (name, one), other in zip(streamed.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_texts_that_do_not_fit_are_refused_before_any_work(bert, senses, texts, tmp_path):
    rows = IterableDataset.from_generator(lambda: iter([{"body": "w1"}]))
    with pytest.raises(ValueError, match="there is no column 'text', only body"):
        make_trainer(bert, senses, rows, tmp_path, max_steps=1).train()
    instructed = replace(bert, prompt=Prompt(instruction="w3 w4"))
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    free = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=0)
    args = SKDTrainingArguments(str(tmp_path), report_to="none")
    for model, data in ((student, texts), (free, texts)):
        with pytest.raises(ValueError, match="the teacher has prompt={.*, the student prompt=None"):
            SKDTrainer(model, args, teacher=instructed, train_dataset=data)
    with pytest.raises(ValueError, match="nowhere is no checkpoint"):
        make_trainer(bert, senses, texts, tmp_path).train(resume_from_checkpoint=str(tmp_path / "nowhere"))


def test_a_stream_that_can_be_read_once_ends(bert, senses, texts, tmp_path):
    source = iter([{"text": text} for text in texts])

    def rows():
        yield from source

    trainer = make_trainer(bert, senses, IterableDataset.from_generator(rows), tmp_path, max_steps=20)
    trainer.train()
    assert trainer.state.global_step == 3
    empty = Dataset.from_dict({"text": [""] * 3}).to_iterable_dataset().filter(lambda row: row["text"])
    with pytest.raises(ValueError, match="no texts to train on"):
        make_trainer(bert, senses, empty, tmp_path, max_steps=20).train()


def test_texts_of_a_batch_have_similar_lengths(bert, senses, tmp_path, monkeypatch):
    texts = [" ".join(WORDS[: 1 + number % 20]) for number in range(200)]
    settings = {"objective": "mse", "per_device_train_batch_size": 5, "per_device_eval_batch_size": 5}
    counts = {}
    for strategy in (None, "random"):
        trainer = make_trainer(bert, senses, texts, tmp_path, train_sampling_strategy=strategy, **settings)
        epochs = []
        for epoch in (0, 1, 0):
            trainer.state.epoch = epoch
            epochs.append([batch["input_ids"] for batch in trainer.get_train_dataloader()])
        counts[strategy] = sum(ids.numel() for ids in epochs[0])
        if strategy is None:
            assert all(torch.equal(one, other) for one, other in zip(epochs[0], epochs[2], strict=True))
            assert any(not torch.equal(one, other) for one, other in zip(*epochs[:2], strict=True))
        for batches in epochs:
            assert sum(int((ids != 0).sum()) for ids in batches) == sum(len(text.split()) + 2 for text in texts)
    assert counts[None] < 0.75 * counts["random"]
    assert sum(batch["input_ids"].numel() for batch in trainer.get_eval_dataloader(texts)) > counts[None]
    grouped = make_trainer(bert, senses, texts, tmp_path, **settings)
    batches = [batch["input_ids"] for batch in grouped.get_eval_dataloader(texts)]
    assert sum(len(ids) for ids in batches) == 200 and sum(ids.numel() for ids in batches) < 0.75 * counts["random"]
    # A stream comes in its own order, and a student without layers pads nothing.
    warnings = []
    monkeypatch.setattr("transformers.trainer.logger.warning", lambda text, *more: warnings.append(text))
    stream = Dataset.from_dict({"text": texts}).to_iterable_dataset()
    make_trainer(bert, senses, stream, tmp_path, max_steps=1).train()
    assert not [text for text in warnings if "train_sampling_strategy" in text]
    assert SKDTrainingArguments(str(tmp_path)).for_layer_free().train_sampling_strategy == "random"


def test_there_is_no_dropout_while_distilling(bert, senses, texts, tmp_path, monkeypatch):
    """The student's modules have none in training, and afterwards what its config says; an adapter keeps its own."""
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    adapted = get_peft_model(student, LoraConfig(target_modules=["query", "value"], lora_dropout=0.5))
    args = SKDTrainingArguments(str(tmp_path), report_to="none", save_strategy="no", max_steps=1)
    trainer = SKDTrainer(adapted, args, teacher=bert, train_dataset=texts)

    def rates():
        modules = [(name, module) for name, module in adapted.named_modules() if isinstance(module, torch.nn.Dropout)]
        return [{module.p for name, module in modules if ("lora" in name) == is_adapter} for is_adapter in (0, 1)]

    seen, step = [], SKDTrainer.training_step
    monkeypatch.setattr(SKDTrainer, "training_step", lambda self, *given: seen.append(rates()) or step(self, *given))
    trainer.train()
    assert seen == [[{0.0}, {0.5}]] and rates() == [{0.1}, {0.5}]


def test_settings_that_are_gone_do_not_keep_a_student_from_loading(bert, senses, tmp_path):
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    student.config.distillation = {"max_steps": -1, "num_train_epochs": 2, "frequency_power": -0.5, "dropout": 0.1}
    student.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).config.distillation["dropout"] == 0.1
    with pytest.raises(TypeError, match="dropout"):
        SKDTrainingArguments(str(tmp_path), dropout=0.1)


def test_gradient_checkpointing_and_half_precision(bert, senses, texts, tmp_path, monkeypatch):
    """The first changes nothing but what is computed twice; the second computes in half, with weights as they were."""
    calls, kind = [], type(bert.model.encoder.layer[0].attention)
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs))
    losses, weights, counts = [], [], []
    for settings in ({}, {"gradient_checkpointing": True}, {"bf16": True, "use_cpu": True}):
        trainer = make_trainer(bert, senses, encode_senses(bert, senses, texts), tmp_path, max_steps=2, **settings)
        calls.clear()
        losses.append(first_loss(trainer))
        counts.append(len(calls))
        weights.append(trainer.model.get_input_embeddings().weight)
    assert counts[1] == 2 * counts[0] == 4 and torch.equal(weights[0], weights[1])
    assert losses[0] == losses[1] != losses[2] == pytest.approx(losses[0], rel=0.05)
    assert {tensor.dtype for tensor in weights} == {torch.float32} and not torch.equal(weights[0], weights[2])


def test_the_best_checkpoint_is_kept(bert, senses, texts, tmp_path):
    """By sense accuracy, with a callback that stops when it has not grown for three evaluations."""
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    before = student.get_input_embeddings().weight.clone()
    args = SKDTrainingArguments(
        str(tmp_path),
        objective="mse",
        report_to="none",
        eval_strategy="steps",
        save_strategy="best",
        metric_for_best_model="sense_accuracy",
        load_best_model_at_end=True,
        eval_steps=1,
        learning_rate=0.003,
        lr_scheduler_type="constant",
        warmup_steps=0,
        num_train_epochs=50,
    )
    trainer = SKDTrainer(student, args, bert, texts, texts, callbacks=[EarlyStoppingCallback(3)])
    trainer.train()
    accuracies = {
        entry["step"]: entry["eval_sense_accuracy"]
        for entry in trainer.state.log_history
        if "eval_sense_accuracy" in entry
    }
    assert (
        trainer.state.best_metric
        == max(accuracies.values())
        == pytest.approx(trainer.evaluate()["eval_sense_accuracy"])
    )
    assert (
        trainer.state.global_step < trainer.state.max_steps
        and trainer.state.best_global_step == trainer.state.global_step - 3
    )
    assert not torch.equal(student.get_input_embeddings().weight, before)


def test_adapters_and_task_models_are_distilled(bert, senses, texts, tmp_path):
    args = SKDTrainingArguments(str(tmp_path), report_to="none", save_strategy="no", max_steps=3, learning_rate=1e-2)
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    adapted = get_peft_model(student, LoraConfig(target_modules=["query", "value"], init_lora_weights=False))
    SKDTrainer(adapted, args, teacher=bert, train_dataset=texts).train()
    merged = adapted.merge_and_unload().state_dict()
    changed = {name for name in before if not torch.equal(before[name], merged[name])}
    assert changed and all("query.weight" in name or "value.weight" in name for name in changed)

    SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1).save_pretrained(tmp_path / "student")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student", num_labels=2)
    head = model.classifier.weight.clone()
    SKDTrainer(model, args, teacher=bert, train_dataset=texts).train()
    assert torch.equal(head, model.classifier.weight) and model.config.objective == "sense+mse+sentence"
    assert not torch.equal(
        model.student.get_input_embeddings().weight, before["backbone.embeddings.word_embeddings.weight"]
    )
    learned = AutoModel.from_pretrained(tmp_path / "student", learn_senses=True)
    with pytest.raises(ValueError, match="learn_senses=False"):
        SKDTrainer(learned, args, teacher=bert, train_dataset=texts)
    with pytest.raises(ValueError, match="BertModel is not a student"):
        SKDTrainer(bert.model, args, teacher=bert, train_dataset=texts)


@pytest.mark.slow
def test_two_processes_train_like_one(bert, senses, texts, teacher_folder, tmp_path, capsys):
    """Gradients are those of the batch that both make together; texts count by positions. Streams are shared too."""
    senses.save_pretrained(tmp_path / "senses")
    for name, rows in [("texts", texts), ("eval", texts[:17])]:
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    command = [
        "distill",
        "--teacher",
        str(teacher_folder),
        "--senses",
        str(tmp_path / "senses"),
        "--texts",
        str(tmp_path / "texts.jsonl"),
    ]
    command += [
        "--num-hidden-layers",
        "1",
        "--epochs",
        "2",
        "--logging-steps",
        "1",
        "--use-cpu",
        "--objective",
        "sense+sentence",
    ]
    evaluated = [
        "--eval-texts",
        str(tmp_path / "eval.jsonl"),
        "--eval-strategy",
        "epoch",
        "--per-device-eval-batch-size",
        "8",
    ]
    assert (
        main([*command, *evaluated, "--disable-tqdm", "True", "--batch-size", "20", "--output", str(tmp_path / "one")])
        == 0
    )
    two = [*command, *evaluated, "--disable-tqdm", "True", "--batch-size", "10", "--output", str(tmp_path / "two")]
    for name, rows in [("many", texts[:44]), ("few", texts[44:])]:  # which the processes are not to share out by file
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    streamed = [*command, "--streaming", "--max-steps", "4", "--batch-size", "4", "--gradient-accumulation-steps", "2"]
    streamed += [
        "--texts",
        str(tmp_path / "many.jsonl"),
        str(tmp_path / "few.jsonl"),
        "--output",
        str(tmp_path / "streamed"),
    ]
    script = tmp_path / "distill.py"
    script.write_text(f"from sensedict_hf.cli import main\nraise SystemExit(main({two!r}) or main({streamed!r}))")
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    printed = capsys.readouterr().err
    for name, number in (("loss", 6), ("eval_loss", 2)):  # the latter of 17 texts, none of them twice
        one, two = (
            [float(loss) for loss in re.findall(rf"'{name}': '?([0-9.]+)", out)] for out in (printed, run.stderr)
        )
        assert len(one) == number and one == pytest.approx(two[:number], rel=1e-3)
    one, two, streamed = (AutoModel.from_pretrained(tmp_path / name) for name in ("one", "two", "streamed"))
    start = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1).get_input_embeddings().weight
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=name)
    assert not any(torch.equal(student.get_input_embeddings().weight, start) for student in (one, streamed))


@pytest.mark.parametrize("objective", ["sense", "mse"])
def test_processes_that_load_data_can_be_given_the_collator(bert, senses, texts, tmp_path, objective):
    trainer = make_trainer(bert, senses, texts, tmp_path, objective=objective)
    rows = list(trainer.train_dataset.select(range(4)))
    sent, own = pickle.loads(pickle.dumps(trainer.data_collator))(rows), trainer.data_collator(rows)
    assert sent.keys() == own.keys() and all(torch.equal(sent[name], own[name]) for name in own)


def test_errors_come_before_the_work(bert, senses, texts, tmp_path):
    with pytest.raises(ValueError, match="texts need a teacher"):
        make_trainer(bert, senses, texts, tmp_path, teacher=False)
    with pytest.raises(ValueError, match="needs the teacher's vectors"):
        make_trainer(bert, senses, encode_senses(bert, senses, texts), tmp_path, teacher=False, objective="mse")
    wrong = [
        ({"objective": "ce"}, "'ce': choose sense"),
        ({"temperature": 0}, "temperature"),
        ({"mse_weight": -1}, "mse_weight"),
    ]
    wrong += [
        ({"remove_unused_columns": True}, "soft labels"),
        ({"label_smoothing_factor": 0.5}, "label_smoothing_factor=0.5"),
        ({"hub_strategy": "all_checkpoints"}, "hub_strategy='all_checkpoints' would upload unfinished students"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            SKDTrainingArguments(str(tmp_path), **settings)
    with pytest.raises(ValueError, match="no column 'text', only sentence"):
        make_trainer(bert, senses, Dataset.from_dict({"sentence": texts}), tmp_path)
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    with pytest.raises(ValueError, match="args is TrainingArguments: pass SKDTrainingArguments"):
        SKDTrainer(student, TrainingArguments(str(tmp_path)), bert, texts)
    args = SKDTrainingArguments(str(tmp_path), bf16=True, use_cpu=True)
    with pytest.raises(
        ValueError, match="weights to be trained are torch.bfloat16: load the student with dtype=torch.float32"
    ):
        SKDTrainer(student.bfloat16(), args, bert, texts)
    assert SKDTrainer(student, args, bert, eval_dataset=texts[:5]).evaluate()["eval_sense_accuracy"] > 0


def test_texts_can_be_evaluated_on(bert, senses, texts, tmp_path):
    torch.manual_seed(0)
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    args = SKDTrainingArguments(str(tmp_path), report_to="none", objective="sense+mse")
    trainer = SKDTrainer(student, args, teacher=bert, eval_dataset={"a": texts[:9], "b": texts[9:]})
    assert student.config.objective is None  # not before it is trained
    metrics = trainer.evaluate()
    assert metrics["eval_a_loss"] > 0 and metrics["eval_b_sense_accuracy"] > 0
    assert trainer.evaluate(texts[:9])["eval_loss"] == pytest.approx(metrics["eval_a_loss"])


def test_an_evaluation_is_of_all_the_texts_that_are_given(bert, senses, texts, tmp_path):
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    parts = {"a": texts[:9], "b": texts[9:]}
    found = {}
    for settings in (
        {},
        {"dataloader_drop_last": True, "per_device_eval_batch_size": 7},
        {"dataloader_persistent_workers": True, "dataloader_num_workers": 1},
    ):
        args = SKDTrainingArguments(str(tmp_path), report_to="none", objective="sense+mse", **settings)
        trainer = SKDTrainer(student, args, teacher=bert, eval_dataset=parts["a"])
        assert trainer.evaluate()["eval_loss"] == trainer.evaluate(parts)["eval_a_loss"]
        for name, part in parts.items():
            loss = trainer.evaluate(part)["eval_loss"]
            assert loss == pytest.approx(found.setdefault(name, loss), rel=1e-5)
        assert args.dataloader_drop_last == ("dataloader_drop_last" in settings)
    assert found["a"] != pytest.approx(found["b"], rel=1e-3)


def test_windows_fit_the_student_too(bert, senses, texts, tmp_path):
    short = BertModel(BertConfig(**SIZES, max_position_embeddings=16))
    student = SKDStudentModel.from_backbone(short, senses)
    args = SKDTrainingArguments(str(tmp_path), report_to="none", max_steps=1, save_strategy="no")
    trainer = SKDTrainer(student, args, teacher=bert, train_dataset=[" ".join(WORDS * 3)])
    assert max(len(row["input_ids"]) for row in trainer.train_dataset) == 16
    trainer.train()
    with pytest.raises(ValueError, match="max_length=17: the model takes 8 to 16 tokens"):
        args = SKDTrainingArguments(str(tmp_path), report_to="none", max_length=17)
        SKDTrainer(student, args, teacher=bert, train_dataset=texts)
    encoded = encode_senses(bert, senses, texts, max_length=20)
    SKDTrainer(
        student, SKDTrainingArguments(str(tmp_path), objective="sense"), train_dataset=encoded
    )  # its rows are short
    with pytest.raises(ValueError, match="rows of 14 tokens, above the 10 that"):
        make_trainer(bert, senses, encoded, tmp_path, max_length=10)
    encoded = concatenate_datasets([encoded, encode_senses(bert, senses, [" ".join(WORDS)], max_length=40)])
    for settings in ({}, {"max_length": 16}):
        with pytest.raises(ValueError, match="rows of 30 tokens, above the 16 that"):
            args = SKDTrainingArguments(str(tmp_path), objective="sense", **settings)
            SKDTrainer(student, args, train_dataset=encoded)
    SKDTrainer(
        student, SKDTrainingArguments(str(tmp_path), objective="sense"), train_dataset=encoded.select(range(60))
    )


def test_what_trainer_would_ignore_is_refused(bert, senses, texts, tmp_path):
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    args = SKDTrainingArguments(str(tmp_path), report_to="none")
    for name in ("compute_metrics", "model_init", "data_collator"):
        with pytest.raises(ValueError, match=f"{name} has no part in distillation"):
            SKDTrainer(student, args, bert, texts, **{name: lambda _: {}})
    with pytest.raises(ValueError, match="max_steps=-1: a stream has no length"):
        SKDTrainer(student, args, bert, Dataset.from_dict({"text": texts}).to_iterable_dataset(), texts)
    assert not (tmp_path / "_encoded").exists()  # before anything was encoded
    trainer = SKDTrainer(student, args, bert, texts, data_collator=None, processing_class=None)
    trainer.get_train_dataloader()
    with pytest.raises(ValueError, match="no predictions"):
        trainer.predict(texts)
    classes = Dataset.from_dict({"input_ids": [[2, 5, 3]] * 60, "labels": [0, 1] * 30, "text": texts})
    assert (
        "labels" in SKDTrainer(student, args, bert, classes).train_dataset.column_names
    )  # encoded, not taken for senses


def test_a_checkpoint_with_another_dictionary_is_refused(bert, senses, texts, tmp_path):
    make_trainer(bert, senses, texts, tmp_path, objective="mse", save_strategy="epoch").train()
    senses.senses[0] += 1
    trainer = make_trainer(bert, senses, texts, tmp_path, objective="mse", num_train_epochs=2)
    with pytest.raises(ValueError, match="another dictionary"):
        trainer.train(resume_from_checkpoint=True)


def test_another_pooling_than_the_teachers_is_told(bert, senses, texts, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1, pooling="cls")
    SKDTrainer(student, SKDTrainingArguments(str(tmp_path), report_to="none"), bert, texts)
    assert "the student's pooling is cls, the teacher's mean" in caplog.text


def test_what_adapters_do_not_keep(bert, senses, texts, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1).save_pretrained(tmp_path / "student")
    args = SKDTrainingArguments(str(tmp_path / "run"), report_to="none", max_steps=2, learning_rate=0.1)
    task = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student", num_labels=2)
    lora = LoraConfig(target_modules=["query", "value"])
    with pytest.raises(ValueError, match="adapters over a task model"):
        SKDTrainer(get_peft_model(task, lora), args, bert, texts)
    adapted = get_peft_model(AutoModel.from_pretrained(tmp_path / "student"), lora)
    SKDTrainer(adapted, args, bert, texts).train()
    assert "does not hold the student's config" in caplog.text
    expected = adapted.get_base_model().encode(texts)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(AutoModel.from_pretrained(tmp_path / "merged").encode(texts), expected)


def test_a_training_that_did_nothing_is_told(bert, senses, texts, tmp_path):
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    settings = {"report_to": "none", "save_strategy": "no", "objective": "sense+mse", "use_cpu": True}
    for steps in ({"max_steps": 5}, {}):
        args = SKDTrainingArguments(str(tmp_path), dataloader_drop_last=True, **settings, **steps)
        with pytest.raises(ValueError, match="leaves out the only batch, as 20 rows are fewer than 32"):
            SKDTrainer(student, args, teacher=bert, train_dataset=texts[:20]).train()
    empty = Dataset.from_dict({"text": texts}).to_iterable_dataset().filter(lambda row: False)
    args = SKDTrainingArguments(str(tmp_path), max_steps=5, **settings)
    with pytest.raises(ValueError, match="no step was done, as there are no texts"):
        SKDTrainer(student, args, teacher=bert, train_dataset=empty).train()


def test_weights_that_became_half_are_not_trained(bert, senses, texts, tmp_path):
    settings = {"report_to": "none", "save_strategy": "no", "bf16_full_eval": True, "use_cpu": True}
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    trainer = SKDTrainer(student, SKDTrainingArguments(str(tmp_path), **settings), bert, texts, texts[:5])
    trainer.evaluate()
    with pytest.raises(ValueError, match="weights to be trained are torch.bfloat16"):
        trainer.train()


@pytest.mark.parametrize("epochs", [0, -1, float("nan")])
def test_a_training_without_steps_is_refused(epochs, tmp_path):
    with pytest.raises(ValueError, match="num_train_epochs=.*: give a finite number above 0"):
        SKDTrainingArguments(str(tmp_path), num_train_epochs=epochs)


def test_settings_without_effect_are_told(bert, senses, texts, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("sensedict_hf.distillation.checks.logger.warning", said.append)
    make_trainer(bert, senses, texts, tmp_path / "a", objective="mse", label_top_k=3, table_learning_rate=1.0)
    make_trainer(bert, senses, texts, tmp_path / "b", objective="sense", mse_weight=5.0, cache_vectors=True)
    make_trainer(bert, senses, texts, tmp_path / "c", objective="sense+mse", mse_weight=5.0, label_top_k=3)
    assert [text.split(" of ")[1].split(":")[0] for text in said] == [
        "label_top_k, table_learning_rate",
        "mse_weight, cache_vectors",
    ]
