"""Where the projection of a student begins."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from sensedict_hf import SKDStudentForTokenClassification, SKDStudentModel, SKDTrainer, SKDTrainingArguments
from sensedict_hf.distillation import projection
from tests.tiny_models import SIZES


@pytest.fixture
def small():
    return BertModel(BertConfig(**{**SIZES, "hidden_size": 8, "num_hidden_layers": 1}, max_position_embeddings=64))


def make_trainer(student, folder, data, teacher=None, **settings):
    settings = {"max_steps": 1, "learning_rate": 1e-9, "objective": "mse", **settings}
    args = SKDTrainingArguments(str(folder), report_to="none", save_strategy="no", disable_tqdm=True, **settings)
    return SKDTrainer(student, args, teacher=teacher, train_dataset=data)


def read(student, teacher, texts):
    """Return the states of the backbone, the student's own vectors and its teacher's, at all tokens of texts."""
    batch = student.tokenizer(texts, padding=True, return_tensors="pt")
    mask = batch["attention_mask"].bool()
    with torch.no_grad():
        states = student.backbone(**batch).last_hidden_state[mask]
        own = student(**batch, assignment="none").last_hidden_state[mask]
        vectors = teacher.hidden_states(batch["input_ids"], batch["attention_mask"])[mask]
    return states, own, vectors


def error(student, teacher, texts):
    _, own, vectors = read(student, teacher, texts)
    return (own - vectors).square().sum(-1).mean().item()


@pytest.mark.parametrize("settings", [{}, {"objective": "sentence"}, {"cache_vectors": True}, {"is_stream": True}])
def test_a_projection_begins_at_the_least_squares_map(bert, senses, texts, small, tmp_path, settings):
    student = SKDStudentModel.from_backbone(small, senses)
    random = error(student, bert, texts)
    data = Dataset.from_dict({"text": texts})
    if settings.pop("is_stream", False):
        data = data.to_iterable_dataset()
    make_trainer(student, tmp_path, data, bert, **settings).train()
    states, _, vectors = read(student, bert, texts)
    inputs = torch.cat([states, torch.ones(len(states), 1)], dim=1).double()
    inverse = torch.linalg.pinv(inputs, rtol=1e-4)  # the states of a layer norm have a sum of zero
    best = (inputs @ inverse @ vectors.double() - vectors).square().sum(-1).mean().item()
    assert best < 0.7 * random and error(student, bert, texts) == pytest.approx(best, rel=0.01)
    assert torch.equal(student.backbone.embeddings.word_embeddings.weight, small.embeddings.word_embeddings.weight)


def test_without_vectors_it_begins_at_the_senses_that_the_teacher_picks(bert, senses, texts, small, tmp_path):
    student = SKDStudentModel.from_backbone(small, senses)
    random = error(student, bert, texts)
    make_trainer(student, tmp_path, texts, bert, objective="sense").train()
    assert error(student, bert, texts) < 0.7 * random


def test_directions_are_fitted_to_a_dictionary_by_cosine(bert, senses, texts, small, tmp_path):
    """The student's vectors have about the length of the teacher's: both are averaged with senses."""
    senses.config.similarity = "cosine"
    student = SKDStudentModel.from_backbone(small, senses)
    random = F.cosine_similarity(*read(student, bert, texts)[1:]).mean()
    make_trainer(student, tmp_path, texts, bert).train()
    _, own, vectors = read(student, bert, texts)
    assert F.cosine_similarity(own, vectors).mean() > max(0.5, random + 0.3)
    assert 0.6 < own.norm(dim=-1).mean() / vectors.norm(dim=-1).mean() < 1.1


def test_adapters_that_freeze_a_random_projection_are_refused(bert, senses, texts, small, tmp_path):
    def train(folder, **settings):
        student = SKDStudentModel.from_backbone(small, senses)
        adapted = get_peft_model(student, LoraConfig(target_modules=["query", "value"], **settings))
        make_trainer(adapted, tmp_path / folder, texts, bert).train()
        return student

    with pytest.raises(ValueError, match='add "projection" to modules_to_save'):
        train("frozen")
    random = error(SKDStudentModel.from_backbone(small, senses), bert, texts)
    assert error(train("trained", modules_to_save=["projection"]), bert, texts) < 0.7 * random


def test_a_frozen_projection_stays(bert, senses, texts, small, tmp_path):
    student = SKDStudentModel.from_backbone(small, senses)
    before = student.projection.requires_grad_(False).weight.clone()
    make_trainer(student, tmp_path, texts, bert).train()
    assert torch.equal(student.projection.weight, before)


def test_a_projection_is_fitted_once(bert, senses, texts, small, tmp_path):
    student = SKDStudentModel.from_backbone(small, senses)
    make_trainer(student, tmp_path / "first", texts, bert, max_steps=5, learning_rate=1e-2).train()
    before = student.projection.weight.clone()
    make_trainer(student, tmp_path / "again", texts, bert).train()
    torch.testing.assert_close(student.projection.weight, before, atol=1e-6, rtol=0)


def test_a_training_that_failed_before_its_first_step_fits_again(bert, senses, texts, small, tmp_path):
    student = SKDStudentModel.from_backbone(small, senses)
    random = error(student, bert, texts)
    trainer = make_trainer(student, tmp_path / "run", texts, bert)
    with pytest.raises(ValueError, match="no checkpoint in .*run to resume from"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SKDStudentModel, "device", property(lambda student: 1 / 0))
        with pytest.raises(ZeroDivisionError):
            trainer.train()
    trainer.train()
    assert error(student, bert, texts) < 0.7 * random


def test_the_fit_reads_some_rows_in_batches_of_the_users_size(bert, senses, texts, small, tmp_path, monkeypatch):
    read = []
    student = SKDStudentModel.from_backbone(small, senses)
    student.backbone.register_forward_hook(lambda *args: read.append(args[2].last_hidden_state.shape[0]))
    trainer = make_trainer(student, tmp_path, texts * 4, bert, per_device_eval_batch_size=7)
    monkeypatch.setattr(projection, "ROWS", 40)
    trainer.train()
    assert read[:-1] == [7, 7, 7, 7, 7, 5]  # the last batch is that of the step
    read.clear()
    student.config.objective = None
    monkeypatch.setattr(projection, "POSITIONS", 100)
    trainer.train()
    assert 1 < len(read) < 5


def test_the_student_inside_a_task_model_is_fitted(bert, senses, texts, small, tmp_path):
    student = SKDStudentModel.from_backbone(small, senses)
    random = error(student, bert, texts)
    student.save_pretrained(tmp_path / "student")
    model = SKDStudentForTokenClassification.from_pretrained(tmp_path / "student", num_labels=2)
    make_trainer(model, tmp_path / "run", texts, bert).train()
    assert error(model.student, bert, texts) < 0.7 * random


def test_an_interrupted_training_goes_on_from_its_projection(bert, senses, texts, small, tmp_path):
    found = []
    for folder, stops in (("whole", [4]), ("parts", [2, 4])):
        for stop in stops:
            torch.manual_seed(0)
            student = SKDStudentModel.from_backbone(small, senses)
            trainer = make_trainer(
                student, tmp_path / folder, texts, bert, max_steps=4, learning_rate=1e-2, lr_scheduler_type="constant"
            )
            trainer.args.save_strategy, trainer.args.save_steps, trainer.args.max_steps = "steps", 2, stop
            trainer.train(resume_from_checkpoint=stop > stops[0])
        found.append(student.projection.weight)
    assert torch.equal(*found)


def test_a_teacher_with_numbers_that_are_not_finite_is_told(bert, senses, texts, small, tmp_path):
    trainer = make_trainer(SKDStudentModel.from_backbone(small, senses), tmp_path, texts, bert)
    bert.model.encoder.layer[3].output.dense.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="step 1: the teacher"):
        trainer.train()
