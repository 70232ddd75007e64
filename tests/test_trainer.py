import pytest
import torch
from conftest import SIZES, WORDS
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from torch.nn import functional as F
from transformers import AutoModel, BertConfig, BertModel

from sensedict_hf import SKDStudentModel, SKDTrainer, SKDTrainingArguments, build_sense_dictionary, encode_senses
from sensedict_hf.corpus import tokenizer_fingerprint


@pytest.fixture
def senses(bert, texts):
    return build_sense_dictionary(bert, texts, budget=120)


def make_trainer(bert, senses, texts, folder, teacher=True, **settings):
    torch.manual_seed(0)
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    settings = {"num_train_epochs": 1, "per_device_train_batch_size": 20, "logging_steps": 1, "seed": 0} | settings
    args = SKDTrainingArguments(str(folder), save_strategy="no", report_to="none", disable_tqdm=True, **settings)
    return SKDTrainer(student, args, teacher=bert if teacher else None, train_dataset=texts)


def first_loss(trainer):
    trainer.train()
    return trainer.state.log_history[0]["loss"]


@pytest.mark.parametrize("objective", ["sense", "mse", "sense+mse"])
def test_loss_is_the_formula(bert, senses, texts, tmp_path, objective):
    """One step over all texts without dropout, against a loop over positions."""
    bert.model.config.hidden_dropout_prob = bert.model.config.attention_probs_dropout_prob = 0.0
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
    assert loaded.config.default_assignment == ("none" if objective == "mse" else "hard")
    assert torch.equal(loaded.senses.senses, senses.senses)


def test_the_teachers_senses_are_encoded_once_and_can_be_kept(bert, senses, texts, tmp_path):
    encoded = encode_senses(bert, senses, texts)
    row = encoded[3]
    ids = torch.tensor([row["input_ids"]])
    assert row["labels"] == senses(ids, bert.last_hidden_state(ids)).sense_ids[0].tolist()
    losses = [first_loss(make_trainer(bert, senses, data, tmp_path, teacher)) for data, teacher in [(texts, True), (encoded, False)]]
    assert losses[0] == losses[1]


def test_accumulated_uneven_batches_are_one_batch(bert, senses, texts, tmp_path):
    bert.model.config.hidden_dropout_prob = bert.model.config.attention_probs_dropout_prob = 0.0
    whole = make_trainer(bert, senses, texts, tmp_path, per_device_train_batch_size=60)
    parts = make_trainer(bert, senses, texts, tmp_path, per_device_train_batch_size=15, gradient_accumulation_steps=4)
    assert first_loss(whole) == pytest.approx(first_loss(parts), rel=1e-4)
    for (name, one), other in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


def test_long_texts_are_counted_once(bert, senses):
    text = " ".join(WORDS * 4)
    encoded = encode_senses(bert, senses, [text], max_length=30)
    counted = [token for row in encoded for token, label in zip(row["input_ids"], row["labels"]) if label != -100]
    assert counted == bert.tokenizer(text)["input_ids"] and len(encoded) > 3


def test_evaluation_tells_the_sense_accuracy(bert, senses, texts, tmp_path):
    trainer = make_trainer(bert, senses, texts, tmp_path)
    metrics = trainer.evaluate(encode_senses(bert, senses, texts[:33]))
    right = known = 0
    for text in texts[:33]:
        ids = torch.tensor([bert.tokenizer(text)["input_ids"]])
        mine, theirs = trainer.model.eval()(ids).sense_ids, senses(ids, bert.last_hidden_state(ids)).sense_ids
        right, known = right + int((mine == theirs).sum()), known + ids.numel()
    assert metrics["eval_sense_accuracy"] == pytest.approx(right / known)


def test_errors_come_before_the_work(bert, senses, texts, tmp_path):
    with pytest.raises(ValueError, match="texts need a teacher"):
        make_trainer(bert, senses, texts, tmp_path, teacher=False)
    with pytest.raises(ValueError, match="needs the teacher's vectors"):
        make_trainer(bert, senses, encode_senses(bert, senses, texts), tmp_path, teacher=False, objective="mse")
    wrong = [({"objective": "kl"}, "'kl': choose sense"), ({"temperature": 0}, "temperature"), ({"mse_weight": -1}, "mse_weight")]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            SKDTrainingArguments(str(tmp_path), **settings)
    with pytest.raises(ValueError, match="no column 'text', only sentence"):
        make_trainer(bert, senses, Dataset.from_dict({"sentence": texts}), tmp_path)


def test_texts_can_be_evaluated_on(bert, senses, texts, tmp_path):
    torch.manual_seed(0)
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    args = SKDTrainingArguments(str(tmp_path), report_to="none", objective="sense+mse")
    trainer = SKDTrainer(student, args, teacher=bert, eval_dataset={"a": texts[:9], "b": texts[9:]})
    assert student.config.objective is None  # not before it is trained
    metrics = trainer.evaluate()
    assert metrics["eval_a_loss"] > 0 and metrics["eval_b_sense_accuracy"] > 0
    assert trainer.evaluate(texts[:9])["eval_loss"] == pytest.approx(metrics["eval_a_loss"])


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


def test_texts_without_tokens_are_left_out(bert, senses):
    bert.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    senses.config.tokenizer_fingerprint = tokenizer_fingerprint(bert.tokenizer)
    assert len(encode_senses(bert, senses, ["w1 w2", "", "w3"])) == 2
