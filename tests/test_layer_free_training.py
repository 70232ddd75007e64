"""Students without layers: the teacher's vectors on disk, the loss, the optimizer, and training with all of them."""

import dataclasses
import json
import multiprocessing
import os
import pickle
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_models import WORDS, build_once, make_model
from torch import nn
from transformers import AutoModel

from sensedict_hf import (
    LayerFreeConfig,
    Prompt,
    SKDStudentConfig,
    SKDStudentModel,
    SKDTrainer,
    SKDTrainingArguments,
    build_sense_dictionary,
    distill_student,
    encode_senses,
    encode_vectors,
)
from sensedict_hf.distillation import teacher_runs, vectors
from sensedict_hf.distillation.layer_free import collate_ragged, default_epochs, layer_free_loss
from sensedict_hf.distillation.losses import vector_errors, vector_loss
from sensedict_hf.distillation.modes import sparse_gradients
from sensedict_hf.distillation.optimizer import RowAdam
from sensedict_hf.distillation.vectors import TeacherVectors

SPECIAL_IDS = [0, 2, 3]
SETTINGS = dict(
    max_steps=20, per_device_train_batch_size=20, save_strategy="no", report_to="none", disable_tqdm=True, seed=0
)


@pytest.fixture
def senses(bert, texts):
    return build_once(bert, texts, senses_per_token=1)


def make_student(bert, senses, **config):
    torch.manual_seed(0)
    sizes = dict(context_size=4, context_embedding_size=6, context_hidden_size=8, text_hidden_size=12) | config
    config = LayerFreeConfig(vocab_size=32, hidden_size=16, special_token_ids=SPECIAL_IDS, **sizes)
    student = SKDStudentModel(
        SKDStudentConfig(text_config=config, sense_config=senses.config, assignment="none", pooling="learned")
    )
    student.senses.load_state_dict(senses.state_dict())
    student.tokenizer = bert.tokenizer
    return student


def make_trainer(bert, senses, texts, folder, eval_dataset=None, config=None, **settings):
    args = SKDTrainingArguments(str(folder), **(SETTINGS | settings))
    student = make_student(bert, senses, **(config or {}))
    return SKDTrainer(student, args, teacher=bert, train_dataset=texts, eval_dataset=eval_dataset)


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# The teacher's vectors


def test_vectors_are_the_teachers(bert, texts, tmp_path, monkeypatch):
    """Without special tokens; the vector of a text is pooled over them too."""
    monkeypatch.setattr(teacher_runs, "PART_TOKENS", 100)
    texts = ["", *texts, "w1 [SEP] w2"]
    data = encode_vectors(bert, texts, tmp_path, special_token_ids=SPECIAL_IDS)
    assert len(data) == len(texts) - 1 and len(list(tmp_path.glob("part-*"))) > 3
    for row, text in enumerate(texts[1:]):
        ids = torch.tensor(bert.tokenizer(text)["input_ids"])
        states = bert.last_hidden_state(ids[None])[0]
        kept = ~torch.isin(ids, torch.tensor(SPECIAL_IDS))
        assert torch.equal(data[row]["input_ids"].long(), ids[kept])
        assert data[row]["vectors"].dtype == torch.float16
        torch.testing.assert_close(data[row]["vectors"].float(), states[kept], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(data[row]["text_vector"], states.mean(0), rtol=1e-5, atol=1e-5)


def test_long_texts_are_rows_of_windows(bert, tmp_path):
    text = " ".join(WORDS * 4)
    ids = bert.tokenizer(text)["input_ids"]
    data = encode_vectors(bert, [text, "w1"], tmp_path, max_length=30)
    assert len(data) > 4 and data[len(data) - 1]["input_ids"].tolist() == bert.tokenizer("w1")["input_ids"][1:-1]
    first = torch.tensor([ids[:29] + ids[-1:]])
    states = bert.last_hidden_state(first)[0]
    assert data[0]["input_ids"].tolist() == ids[1:29]
    torch.testing.assert_close(data[0]["vectors"].float(), states[1:-1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(data[0]["text_vector"], states.mean(0), rtol=1e-5, atol=1e-5)


def test_folders_of_vectors_follow_each_other(bert, texts, tmp_path):
    parts = [encode_vectors(bert, texts[:9], tmp_path / "a"), encode_vectors(bert, texts[9:20], tmp_path / "b")]
    joined = TeacherVectors(tmp_path / "b", tmp_path / "a")
    assert len(joined) == 20
    for row, (part, number) in {0: (1, 0), 10: (1, 10), 11: (0, 0), 19: (0, 8)}.items():
        assert all(torch.equal(value, parts[part][number][name]) for name, value in joined[row].items())
    assert torch.equal(pickle.loads(pickle.dumps(joined))[19]["vectors"], joined[19]["vectors"])
    encode_vectors(bert, texts[:9], tmp_path / "c", layer=1)
    with pytest.raises(ValueError, match="c holds vectors with other settings than .*a: layer"):
        TeacherVectors(tmp_path / "a", tmp_path / "c")


def test_variances_are_mean_squared_distances(bert, texts, tmp_path):
    data = encode_vectors(bert, texts, tmp_path)
    tokens = torch.cat([row["vectors"] for row in map(data.__getitem__, range(len(data)))]).double()
    sentences = torch.stack([data[row]["text_vector"] for row in range(len(data))]).double()
    expected = [float((x - x.mean(0)).square().sum(1).mean()) for x in (tokens, sentences)]
    assert list(data.variances()) == pytest.approx(expected, rel=1e-6)
    single = encode_vectors(bert, ["w1 w2"], tmp_path / "single").variances()
    assert single.text == 1  # not 0: errors are divided by it


def test_vectors_in_context_are_spread_over_the_texts(bert, texts, tmp_path, monkeypatch):
    data = encode_vectors(bert, texts, tmp_path, special_token_ids=SPECIAL_IDS)
    ids, rows = (torch.cat([data[row][name] for row in range(len(data))]) for name in ("input_ids", "vectors"))
    monkeypatch.setattr(vectors, "MAX_ROWS", 50)
    statistics, step = data.token_statistics(40), -(-len(ids) // 50)
    assert step > 2 and torch.equal(statistics.tokens, ids[::step].long())
    assert torch.equal(statistics.vectors, rows[::step].float()) and len(statistics.weights) == len(ids[::step])


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the system does not tell which files are open")
def test_no_file_stays_open(bert, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_runs, "PART_TOKENS", 1)
    before = len(os.listdir("/proc/self/fd"))
    data = encode_vectors(bert, texts, tmp_path)
    assert len(list(tmp_path.glob("part-*"))) == len(data) == 60
    assert len(os.listdir("/proc/self/fd")) < before + 10


def test_an_interrupted_pass_goes_on(bert, texts, tmp_path, monkeypatch):
    """Killed after some parts; what was done is not done again, and the bytes are the same."""
    monkeypatch.setattr(teacher_runs, "PART_TOKENS", 100)
    straight = encode_vectors(bert, texts, tmp_path / "straight")
    done, encode_part = multiprocessing.Value("i", 0), vectors._encode_part

    def count_and_kill(*arguments):
        done.value += 1
        if done.value == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode_part(*arguments)

    monkeypatch.setattr(vectors, "_encode_part", count_and_kill)

    def work():
        torch.set_num_threads(1)
        encode_vectors(bert, texts, tmp_path / "killed")

    for expected in (-signal.SIGKILL, 0):
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join(120)
        assert process.exitcode == expected
    parts = sorted(path.name for path in (tmp_path / "straight").glob("part-*"))
    assert done.value == len(parts) + 1
    for name in parts:
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert len(TeacherVectors(tmp_path / "killed")) == len(straight)
    # A finished folder is opened, and other settings are refused.
    encode_vectors(bert, texts, tmp_path / "killed")
    assert done.value == len(parts) + 1
    with pytest.raises(ValueError, match="holds a dataset with other settings: layer was -1, is 2"):
        encode_vectors(bert, texts, tmp_path / "killed", layer=2)
    with pytest.raises(ValueError, match="other settings: corpus was"):
        encode_vectors(bert, texts[1:], tmp_path / "killed")


def test_bad_vectors_are_refused(bert, texts, tmp_path):
    embeddings = bert.model.embeddings.word_embeddings.weight.data
    texts = ["w1 w2", "w3", "w4 w20", "w5"]
    embeddings[4 + 20] = torch.nan
    with pytest.raises(ValueError, match="tiny-bert yields values up to nan for text 2, which float16 cannot hold"):
        encode_vectors(bert, texts, tmp_path / "nan")
    embeddings[4 + 20] = 0
    bert.model.encoder.layer[-1].output.LayerNorm.weight.data *= 1e6
    with pytest.raises(ValueError, match="which float16 cannot hold"):
        encode_vectors(bert, texts, tmp_path / "large")
    with pytest.raises(ValueError, match="none of the texts has tokens"):
        encode_vectors(bert, ["", "[SEP]"], tmp_path / "empty", special_token_ids=SPECIAL_IDS)


# The loss and the optimizer


@pytest.mark.parametrize("weights", [{"mse": 1.0, "sentence": 3.0}, {"mse": 1.0}, {"sentence": 1.0}])
def test_loss_is_the_formula(weights):
    """Against loops in float64."""
    generator = np.random.default_rng(0)
    tokens, their_tokens = generator.normal(size=(2, 7, 5))
    texts, their_texts = generator.normal(size=(2, 3, 5))
    token_error = sum(((a - b) ** 2).sum() / 0.7 for a, b in zip(tokens, their_tokens)) / 7
    text_error = sum(((a - b) ** 2).sum() / 0.2 for a, b in zip(texts, their_texts)) / 3
    given = [torch.tensor(x, dtype=torch.float32) for x in (tokens, their_tokens, texts, their_texts)]
    loss = vector_loss(vector_errors(*given, 0.7, 0.2), weights)
    expected = weights.get("mse", 0) * token_error + weights.get("sentence", 0) * text_error
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_half_of_the_tokens_is_compared_in_training(bert, senses, texts, tmp_path):
    data = encode_vectors(bert, texts, tmp_path)
    batch, student = collate_ragged([data[row] for row in range(9)]), make_student(bert, senses)
    tokens = len(batch["input_ids"])
    variances, weights = data.variances(), {"mse": 1.0, "sentence": 3.0}
    whole = layer_free_loss(student.backbone, batch, variances, weights)
    half, again, other = (
        layer_free_loss(student.backbone, batch, variances, weights, seed) for seed in ((0, 1), (0, 1), (0, 2))
    )
    assert whole[1].tokens == tokens and half[1].tokens == tokens // 2
    assert half[0] == again[0] != other[0] and half[1].sentence_error == whole[1].sentence_error


def test_gradients_of_tables_have_the_rows_of_the_batch(bert, senses, texts, tmp_path):
    data = encode_vectors(bert, texts, tmp_path)
    batch, student = collate_ragged([data[row] for row in range(9)]), make_student(bert, senses)
    with torch.no_grad():
        student.backbone.context.weight.normal_()
    gradients = []
    for is_on in (True, False):
        student.zero_grad()
        with sparse_gradients(student, is_on=is_on):
            layer_free_loss(student.backbone, batch, data.variances(), {"mse": 1.0, "sentence": 3.0})[0].backward()
        tables = [module for module in student.backbone.modules() if isinstance(module, nn.Embedding)]
        assert all(table.weight.grad.is_sparse == is_on for table in tables) and len(tables) == 3
        gradients.append([table.weight.grad.to_dense() if is_on else table.weight.grad for table in tables])
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sparse", [False, True])
def test_rows_without_a_gradient_wait(sparse):
    """With a gradient for all rows it is torch's Adam; a row without one stays as it is, and so do its averages."""
    start = torch.randn(6, 3)
    table, other = nn.Embedding(6, 3, sparse=sparse), nn.Parameter(start.clone())
    table.weight.data.copy_(start)
    line, theirs = nn.Parameter(start[0].clone()), nn.Parameter(start[0].clone())
    mine = RowAdam(
        [{"params": [table.weight], "is_table": True}, {"params": [line], "lr": 1e-3}], lr=1e-2, weight_decay=0
    )
    reference = torch.optim.AdamW([{"params": [other]}, {"params": [theirs], "lr": 1e-3}], lr=1e-2, weight_decay=0)
    for _ in range(5):
        ids = torch.arange(6)[torch.randperm(6)]
        goal = torch.randn(6, 3)
        for optimizer, loss in [
            (mine, (table(ids) * goal).sum() + (line * goal[0]).square().sum()),
            (reference, (other[ids] * goal).sum() + (theirs * goal[0]).square().sum()),
        ]:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(table.weight, other)
    torch.testing.assert_close(line, theirs)
    before = table.weight.detach().clone(), mine.state[table.weight]["exp_avg"].clone()
    mine.zero_grad()
    table(torch.tensor([1, 1, 4])).square().sum().backward()
    mine.step()
    changed = (table.weight != before[0]).any(1)
    assert changed.tolist() == [False, True, False, False, True, False]
    assert (mine.state[table.weight]["exp_avg"] != before[1]).any(1).tolist() == changed.tolist()


# Training


@pytest.mark.parametrize("objective", [None, "mse", "sentence"])
def test_training_lowers_the_errors(bert, senses, texts, tmp_path, objective):
    settings = {} if objective is None else {"objective": objective}
    trainer = make_trainer(bert, senses, texts, tmp_path, eval_dataset=texts[:30], max_steps=150, **settings)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    names = {None: ["token", "sentence"], "mse": ["token"], "sentence": ["sentence"]}[objective]
    for name in names:
        assert after[f"eval_{name}_error"] < 0.6 * before[f"eval_{name}_error"]
    if objective is None:
        expected = after["eval_token_error"] + 3 * after["eval_sentence_error"]
        assert after["eval_loss"] == pytest.approx(expected, rel=1e-5)
    student = trainer.student
    assert student.config.objective == (objective or "mse+sentence")
    assert (
        student.config.distillation["table_learning_rate"] == 2e-2 and "temperature" not in student.config.distillation
    )
    assert not any(module.sparse for module in student.modules() if isinstance(module, nn.Embedding))
    assert trainer.teacher is None
    student.save_pretrained(tmp_path / "student")
    assert same_weights(AutoModel.from_pretrained(tmp_path / "student"), student)


@pytest.mark.parametrize("settings", [{}, {"max_grad_norm": 1.0}])
def test_only_rows_of_tokens_in_the_texts_change(bert, senses, tmp_path, settings):
    trainer = make_trainer(bert, senses, ["w1 w2 w3", "w2 w5"], tmp_path, max_steps=3, **settings)
    tables = [getattr(trainer.student.backbone, name).weight for name in TABLES]
    before = [table.detach().clone() for table in tables]
    trainer.train()
    for table, earlier in zip(tables, before):
        changed = (table != earlier).any(1).nonzero().squeeze(1).tolist()
        assert changed == [4 + number for number in (1, 2, 3, 5)]


TABLES = ("token_embeddings", "token_weights", "context_embeddings")


def test_the_same_seed_gives_the_same_student(bert, senses, texts, tmp_path):
    """Evaluations change nothing, nor does where the vectors come from."""
    data = encode_vectors(bert, texts, tmp_path / "vectors", special_token_ids=SPECIAL_IDS)
    students = []
    for folder, given, settings in [
        ("one", texts, {}),
        ("two", data, {}),
        ("three", Dataset.from_dict({"text": texts}), dict(eval_strategy="steps", eval_steps=3)),
        ("four", texts, dict(seed=1)),
    ]:
        trainer = make_trainer(bert, senses, given, tmp_path / folder, eval_dataset=texts[:7], **settings)
        trainer.train()
        students.append(trainer.student)
    assert same_weights(students[0], students[1]) and same_weights(students[0], students[2])
    assert not same_weights(students[0], students[3])


def test_a_resumed_run_is_the_straight_one(bert, senses, texts, tmp_path):
    settings = dict(save_strategy="steps", save_steps=5, logging_steps=5, gradient_accumulation_steps=2, max_steps=20)
    straight = make_trainer(bert, senses, texts, tmp_path, **settings)
    straight.train()
    for folder in tmp_path.glob("checkpoint-*"):
        if folder.name != "checkpoint-10":
            shutil.rmtree(folder)
    resumed = make_trainer(bert, senses, texts, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert same_weights(straight.student, resumed.student)
    assert resumed.state.log_history[:-1] == straight.state.log_history[:-1]


def test_a_backbone_without_context_and_a_long_text(bert, senses, tmp_path):
    texts = [" ".join(WORDS * 5), "w1", ""]
    trainer = make_trainer(bert, senses, texts, tmp_path, config=dict(context_size=0, text_hidden_size=0))
    assert len(trainer.train_dataset) > 3
    assert trainer.train().training_loss > 0


def test_a_trainer_that_only_evaluates(bert, senses, texts, tmp_path):
    trained = make_trainer(bert, senses, texts, tmp_path)
    alone = make_trainer(bert, senses, None, tmp_path, eval_dataset={"a": texts})
    vectors = alone.eval_dataset["a"]
    assert alone.evaluate()["eval_a_loss"] == pytest.approx(trained.evaluate(vectors)["eval_loss"], rel=1e-5)
    # Each set has its own unit if there are no training texts, whatever their order.
    parts = {"a": texts[:5], "b": texts}
    one, other = (
        make_trainer(bert, senses, None, tmp_path, eval_dataset={name: parts[name] for name in names}).evaluate()
        for names in (["a", "b"], ["b", "a"])
    )
    for name in parts:
        assert one[f"eval_{name}_loss"] == pytest.approx(other[f"eval_{name}_loss"], rel=1e-5)
    bare = SKDTrainer(make_student(bert, senses), SKDTrainingArguments(str(tmp_path), report_to="none"))
    assert bare.evaluate(vectors)["eval_loss"] == pytest.approx(trained.evaluate(vectors)["eval_loss"], rel=1e-5)


def test_defaults_depend_on_the_student(bert, senses, texts, tmp_path):
    given = dict(report_to="none", save_strategy="no")
    trainer = make_trainer(bert, senses, texts, tmp_path)
    student = trainer.student
    args = SKDTrainingArguments(str(tmp_path), **given)
    assert args.objective == "sense+mse+sentence" and args.learning_rate == 1e-3
    own = SKDTrainer(student, args, bert, texts).args
    assert (own.objective, own.loss_weights) == ("mse+sentence", {"mse": 1.0, "sentence": 3.0})
    assert (own.learning_rate, own.table_learning_rate, own.max_grad_norm) == (3e-3, 2e-2, 0)
    assert (own.per_device_train_batch_size, own.num_train_epochs, own.max_steps) == (256, 10, -1)
    assert args.per_device_train_batch_size == 32 and args.max_steps == -1  # the given ones stay
    optimizer = SKDTrainer(student, args, bert, texts).create_optimizer()
    assert [group["lr"] for group in optimizer.param_groups] == [3e-3, 2e-2]
    # What is given wins, also if it is a default for other students.
    chosen = dict(learning_rate=1e-3, num_train_epochs=2.0, sentence_weight=9.0, table_learning_rate=1e-3)
    own = SKDTrainer(student, SKDTrainingArguments(str(tmp_path), **chosen, **given), bert, texts).args
    assert {name: getattr(own, name) for name in chosen} == chosen and own.max_steps == -1
    # With a batch of 1: 200 steps are 3 to 10 passes over the texts.
    for rows, epochs in [(80, 3), (50, 4), (10, 10)]:
        own = SKDTrainingArguments(str(tmp_path), per_device_train_batch_size=1, **given)
        assert default_epochs(own.for_layer_free(), rows).num_train_epochs == pytest.approx(epochs)


def test_an_interrupted_call_continues(bert, senses, texts, tmp_path, monkeypatch):
    """In a folder, as for other students; the state knows the defaults of students without layers."""

    def distill(folder, **settings):
        given = SETTINGS | dict(save_strategy="steps", save_steps=5) | settings
        args = SKDTrainingArguments(str(tmp_path / folder), use_cpu=True, **given)
        return distill_student(bert, senses, texts, args=args, num_hidden_layers=0)

    straight = distill("straight")
    step = SKDTrainer.training_step
    with monkeypatch.context() as patch, pytest.raises(OSError):

        def fail(self, *arguments):
            if self.state.global_step == 8:
                raise OSError("the machine is gone")
            return step(self, *arguments)

        patch.setattr(SKDTrainer, "training_step", fail)
        distill("stopped")
    with pytest.raises(ValueError, match="learning_rate was 0.003, is 0.001"):
        distill("stopped", learning_rate=1e-3)
    monkeypatch.setattr(vectors, "_encode_part", None)  # the teacher's work is done
    assert same_weights(straight, distill("stopped"))
    assert not (tmp_path / "stopped" / "_encoded").exists()


def test_what_is_refused(bert, senses, texts, tmp_path):
    for settings, message in [
        ({"objective": "sense+mse"}, "a student without layers does not learn to pick senses"),
        ({"weight_decay": 0.1}, "weight_decay=0.1: there is none"),
        ({"optim": "sgd"}, "optim='sgd': a student without layers has its own optimizer"),
        ({"table_learning_rate": 0.0}, "table_learning_rate=0.0: give a finite number above 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_trainer(bert, senses, texts, tmp_path, **settings)
    with pytest.raises(ValueError, match="tables in int8 are constant: train the student before"):
        make_trainer(bert, senses, texts, tmp_path, config={"table_dtype": "int8"})
    stream = Dataset.from_dict({"text": texts}).to_iterable_dataset()
    with pytest.raises(ValueError, match="which a stream does not allow"):
        make_trainer(bert, senses, stream, tmp_path)
    with pytest.raises(ValueError, match="pass teacher="):
        SKDTrainer(make_student(bert, senses), SKDTrainingArguments(str(tmp_path)), train_dataset=texts)
    with pytest.raises(ValueError, match="from encode_senses holds no vectors"):
        make_trainer(bert, senses, encode_senses(bert, senses, texts), tmp_path)
    data = encode_vectors(bert, texts, tmp_path / "vectors", layer=1)
    with pytest.raises(ValueError, match="computed with layer=1, here it is -1"):
        make_trainer(bert, senses, data, tmp_path)
    assert json.loads((tmp_path / "vectors" / "state.json").read_text())["layer"] == 1
    for name, value in (("pooling", "max"), ("prompt", Prompt("w1 {text}"))):
        other = dataclasses.replace(bert, **{name: value})
        data = encode_vectors(other, texts, tmp_path / name)
        with pytest.raises(ValueError, match=f"computed with {name}="):
            make_trainer(bert, senses, data, tmp_path)


def test_vectors_of_another_teacher_are_told(bert, texts, tmp_path, caplog):
    senses = build_sense_dictionary(bert, texts, budget=90)
    other = replace(bert, model=make_model("bert"), name="another")
    vectors = encode_vectors(other, texts, tmp_path / "vectors")
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=0)
    args = SKDTrainingArguments(str(tmp_path / "run"), report_to="none", max_steps=1, save_strategy="no")
    SKDTrainer(student, args, train_dataset=vectors)
    assert "the teacher of the vectors, another, has other weights" in caplog.text


def test_the_scale_of_the_teacher_does_not_matter(bert, texts, tmp_path):
    """The student of a teacher with vectors eight times as long learns the same, with vectors eight times as long."""
    found = []
    for scale in (1, 8):
        normalization = bert.model.encoder.layer[-1].output.LayerNorm
        for parameter in (normalization.weight, normalization.bias):
            parameter.data *= scale
        vectors = encode_vectors(bert, texts, tmp_path / str(scale), special_token_ids=SPECIAL_IDS)
        torch.manual_seed(0)
        student = SKDStudentModel.from_vectors(bert, vectors, context_size=4, text_hidden_size=8)
        args = SKDTrainingArguments(str(tmp_path / f"run-{scale}"), **SETTINGS)
        start = student.encode(texts)
        SKDTrainer(student, args, train_dataset=vectors).train()
        assert not torch.allclose(student.encode(texts), start, rtol=0.1)
        found.append(student.encode(texts))
    torch.testing.assert_close(found[1], 8 * found[0], rtol=1e-4, atol=1e-4)
