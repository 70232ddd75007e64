"""Students with a head: a new one, or the head of a fine-tuned teacher."""

import logging
import re

import pytest
import torch
from tiny_models import SIZES
from torch.nn import functional as F
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertModel,
    ModernBertConfig,
    pipeline,
)

from sensedict_hf import (
    SKDStudentForSequenceClassification,
    SKDStudentForTokenClassification,
    SKDStudentModel,
    build_sense_dictionary,
    load_teacher,
)
from sensedict_hf.models.head_transfer import ENCODER_HEADS

LABELS = {0: "bad", 1: "so-so", 2: "good"}
HEADS = {
    SKDStudentForSequenceClassification: AutoModelForSequenceClassification,
    SKDStudentForTokenClassification: AutoModelForTokenClassification,
}
both_heads = pytest.mark.parametrize("head", HEADS)


def make_classifier(kind, head, **settings):
    """A classifier with random biases and norms, so that every weight changes the logits."""
    config = CONFIG_MAPPING[kind](**SIZES, max_position_embeddings=66, pad_token_id=0, **settings)
    config.id2label, config.label2id = LABELS, {label: number for number, label in LABELS.items()}
    if kind == "llama":
        config.num_key_value_heads = 1
    model = HEADS[head].from_config(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def senses_of(classifier, tokenizer, texts):
    return build_sense_dictionary(load_teacher(classifier, tokenizer=tokenizer), texts, budget=90)


def batch_of(tokenizer, texts, side="right"):
    return tokenizer(texts[:5], padding=True, padding_side=side, return_tensors="pt", return_token_type_ids=False)


@pytest.fixture
def student_folder(bert, texts, tmp_path):
    SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts, budget=90)).save_pretrained(
        tmp_path / "student"
    )
    return tmp_path / "student"


@both_heads
@pytest.mark.parametrize("kind", [*ENCODER_HEADS, "llama"])
def test_a_copied_head_is_the_teachers(kind, head, tokenizer, texts, tmp_path):
    """With all layers and without senses the logits are equal to the teacher's, before and after saving."""
    classifier = make_classifier(kind, head)
    senses = senses_of(classifier, tokenizer, texts)
    student = head.from_teacher(classifier, senses, num_hidden_layers=4, assignment="none")
    assert not student.training
    for side in ("right", "left") if kind == "llama" else ("right",):
        batch = batch_of(tokenizer, texts, side)
        expected = classifier(**batch).logits
        assert expected.std() > 0.1
        torch.testing.assert_close(student(**batch).logits, expected)
    assert student.config.id2label == LABELS and student.config.label2id == {
        label: number for number, label in LABELS.items()
    }
    student.save_pretrained(tmp_path)
    loaded = HEADS[head].from_pretrained(tmp_path)
    assert isinstance(loaded, head)
    torch.testing.assert_close(loaded(**batch).logits, expected)
    for model in (student, loaded):
        assert all(
            parameter.requires_grad == name.startswith("student.") for name, parameter in model.named_parameters()
        )
    assert all(
        parameter.requires_grad for parameter in HEADS[head].from_pretrained(tmp_path, freeze_head=False).parameters()
    )


@both_heads
def test_a_copied_head_reads_senses(head, tokenizer, texts, tmp_path):
    """The teacher is a folder in half precision; the student has two of its four layers."""
    make_classifier("bert", head, problem_type="single_label_classification").bfloat16().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    senses = build_sense_dictionary(str(tmp_path), texts, budget=90)
    student = head.from_teacher(str(tmp_path), senses).eval()
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    assert student.config.num_hidden_layers == 2 and student.config.problem_type == "single_label_classification"
    assert student.tokenizer.get_vocab() == tokenizer.get_vocab()
    teacher, batch = HEADS[head].from_pretrained(tmp_path, dtype=torch.float32).eval(), batch_of(tokenizer, texts)
    chosen = student.student(**batch).last_hidden_state
    read = chosen if head is SKDStudentForTokenClassification else teacher.bert.pooler(chosen)
    assert torch.equal(student(**batch).logits, teacher.classifier(read))


def test_a_copied_head_on_another_backbone(tokenizer, texts):
    classifier = make_classifier("deberta-v2", SKDStudentForSequenceClassification, pooler_hidden_act="relu")
    small = BertModel(BertConfig(**{**SIZES, "hidden_size": 8, "num_hidden_layers": 1}, max_position_embeddings=64))
    student = SKDStudentModel.from_backbone(small, senses_of(classifier, tokenizer, texts))
    model = SKDStudentForSequenceClassification.from_student(student, classifier).eval()
    batch = batch_of(tokenizer, texts)
    first = student.eval()(**batch).last_hidden_state[:, 0]
    expected = classifier.classifier(torch.relu(classifier.pooler.dense(first)))
    torch.testing.assert_close(model(**batch).logits, expected)
    assert model.student.encode(texts[:2]).shape == (2, 16) and not model.classifier.weight.requires_grad
    # The config of the given student is unchanged.
    assert student.config.pooling == "mean" and student.config.freeze_head is False


def test_what_cannot_be_copied_is_refused(bert, tokenizer, texts, tmp_path):
    senses = build_sense_dictionary(bert, texts, budget=90)
    student = SKDStudentModel.from_teacher(bert, senses)
    sizes = dict(SIZES, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3)
    modern = AutoModelForSequenceClassification.from_config(ModernBertConfig(**sizes))
    for model in (bert.model, modern, make_classifier("bert", SKDStudentForTokenClassification)):
        with pytest.raises(
            ValueError, match=rf"cannot copy the head of {type(model).__name__}: known are .*learn a head of its own"
        ):
            SKDStudentForSequenceClassification.from_student(student, model)
    with pytest.raises(ValueError, match="cannot copy the head of BertForSequenceClassification"):
        SKDStudentForTokenClassification.from_student(
            student, make_classifier("bert", SKDStudentForSequenceClassification)
        )
    with pytest.raises(ValueError, match="Teacher is no model with a head: pass a name"):
        SKDStudentForSequenceClassification.from_teacher(bert, senses)
    bert.model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="lacks weights of BertForSequenceClassification, which would be random: classifier.bias"
    ):
        SKDStudentForSequenceClassification.from_teacher(tmp_path, senses)
    student.config.sense_config.layer = 2
    with pytest.raises(ValueError, match="reads layer 4 of width 16, the senses are of layer 2 and width 16"):
        SKDStudentForSequenceClassification.from_student(
            student, make_classifier("bert", SKDStudentForSequenceClassification)
        )


@both_heads
def test_a_frozen_head_is_never_invented(head, tokenizer, texts, tmp_path):
    classifier = make_classifier("bert", head)
    model = head.from_teacher(classifier, senses_of(classifier, tokenizer, texts))
    model.save_pretrained(tmp_path / "whole")
    model.student.save_pretrained(tmp_path / "headless")
    message = "do not agree on classifier.bias, classifier.weight"
    with pytest.raises(ValueError, match=message):
        HEADS[head].from_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=message):
        HEADS[head].from_pretrained(tmp_path / "whole", num_labels=5, ignore_mismatched_sizes=True)
    batch = batch_of(tokenizer, texts)
    for folder in ("headless", "whole"):  # both contain a student without a head
        again = head.from_student(AutoModel.from_pretrained(tmp_path / folder), classifier).eval()
        assert torch.equal(again(**batch).logits, model.eval()(**batch).logits)
    new, info = HEADS[head].from_pretrained(tmp_path / "headless", freeze_head=False, output_loading_info=True)
    assert {"classifier.weight", "classifier.bias"} <= set(
        info["missing_keys"]
    ) and new.classifier.weight.requires_grad


@both_heads
def test_a_new_head_on_a_saved_student(head, student_folder, tokenizer, texts, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model, info = HEADS[head].from_pretrained(student_folder, num_labels=5, output_loading_info=True)
    assert isinstance(model, head) and set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert re.search(r"classifier\.weight *\| *MISSING", caplog.text)  # the usual warning of transformers
    batch = batch_of(tokenizer, texts)
    shape = batch["input_ids"].shape if head is SKDStudentForTokenClassification else (5,)
    assert model(**batch).logits.shape == (*shape, 5)
    assert torch.equal(model.base_model.senses.senses, AutoModel.from_pretrained(student_folder).senses.senses)
    logits = model.eval()(**batch, return_dict=False, output_hidden_states=True)
    assert torch.equal(logits[0], model(**batch).logits) and len(logits[1]) == 3


def test_losses_of_text_classification(student_folder, tokenizer, texts):
    batch = batch_of(tokenizer, texts)
    cases = [
        (torch.tensor([0, 1, 2, 0, 1]), 3, None, F.cross_entropy),
        (torch.rand(5, 3).round(), 3, None, F.binary_cross_entropy_with_logits),
        (
            torch.tensor([[1, 0, 1]] * 5),
            3,
            "multi_label_classification",
            lambda x, y: F.binary_cross_entropy_with_logits(x, y.float()),
        ),
        (torch.rand(5), 1, None, lambda x, y: F.mse_loss(x.squeeze(-1), y)),
        (torch.rand(5, 3), 3, "regression", F.mse_loss),
    ]
    for labels, number, kind, function in cases:
        model = AutoModelForSequenceClassification.from_pretrained(
            student_folder, num_labels=number, problem_type=kind
        ).eval()
        logits = model(**batch).logits
        torch.testing.assert_close(model(**batch, labels=labels).loss, function(logits, labels))
        summed = model(**batch, labels=labels, num_items_in_batch=2 * labels.numel()).loss
        torch.testing.assert_close(2 * summed, function(logits, labels))


def test_loss_of_token_classification(student_folder, tokenizer, texts):
    model, batch = (
        AutoModelForTokenClassification.from_pretrained(student_folder, num_labels=3).eval(),
        batch_of(tokenizer, texts),
    )
    labels = (batch["input_ids"] % 3).masked_fill(batch["attention_mask"] == 0, -100)
    counted = labels != -100
    expected = F.cross_entropy(model(**batch).logits[counted], labels[counted])
    torch.testing.assert_close(model(**batch, labels=labels).loss, expected)
    torch.testing.assert_close(model(**batch, labels=labels, num_items_in_batch=counted.sum()).loss, expected)


@both_heads
def test_cards_and_pipelines(head, tokenizer, texts, tmp_path):
    classifier = make_classifier("bert", head)
    head.from_teacher(classifier, senses_of(classifier, tokenizer, texts)).save_pretrained(tmp_path)
    task = {
        SKDStudentForSequenceClassification: "text-classification",
        SKDStudentForTokenClassification: "token-classification",
    }[head]
    card = (tmp_path / "README.md").read_text()
    assert f"pipeline_tag: {task}" in card and f'pipeline("{task}", model=' in card
    assert "| labels | 3: bad, so-so, good |" in card and "| head | copied from the teacher |" in card
    found = pipeline(task, model=str(tmp_path))("w1 w2 w3")
    assert {row.get("label", row.get("entity")) for row in found} <= set(LABELS.values()) and len(found) in (1, 3, 5)


def test_a_frozen_head_is_not_taken_for_that_of_another_task(bert, texts, tmp_path):
    student = SKDStudentModel.from_teacher(
        bert, build_sense_dictionary(bert, texts, senses_per_token=2), num_hidden_layers=1
    )
    model = SKDStudentForSequenceClassification(student.config)
    model.student.load_state_dict(student.state_dict())
    model.config.freeze_head = True
    model.tokenizer = bert.tokenizer
    model.save_pretrained(tmp_path)
    for settings in ({}, {"freeze_head": False}):
        with pytest.raises(ValueError, match="holds the head of a SKDStudentForSequenceClassification: load that"):
            AutoModelForTokenClassification.from_pretrained(tmp_path, **settings)
    model.student.save_pretrained(tmp_path / "alone")
    AutoModelForTokenClassification.from_pretrained(tmp_path / "alone", freeze_head=False)


@pytest.mark.parametrize(
    ("num_labels", "labels", "kind"),
    [
        (1, [[0.3], [0.7]], "regression"),
        (3, [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]], "multi_label_classification"),
        (3, [0, 2], "single_label_classification"),
    ],
)
def test_the_kind_of_the_labels_is_saved_for_pipelines(student_folder, texts, tmp_path, num_labels, labels, kind):
    model = AutoModelForSequenceClassification.from_pretrained(student_folder, num_labels=num_labels).eval()
    batch = model.tokenizer(texts[:2], padding=True, return_tensors="pt")
    model(**batch, labels=torch.tensor(labels))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.problem_type == kind
    found = pipeline("text-classification", model=loaded, tokenizer=model.tokenizer, top_k=None)(texts[0])
    logits = model(**batch).logits[0]
    expected = logits.softmax(0) if kind.startswith("single") else logits.sigmoid()
    found = found[0] if isinstance(found[0], list) else found
    if num_labels > 1:
        assert sorted(one["score"] for one in found) == pytest.approx(sorted(expected.tolist()), abs=1e-5)
