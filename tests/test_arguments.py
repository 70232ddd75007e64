"""Arguments are checked where they come in: by name, type and range. Numbers must be finite."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from sensedict_hf import (
    SKDStudentConfig,
    SKDStudentModel,
    SKDTrainer,
    SKDTrainingArguments,
    build_sense_dictionary,
    distill_student,
    encode_senses,
    merge_sense_dictionaries,
)
from sensedict_hf.models.arguments import check_integer, check_number, check_path


@pytest.fixture
def senses(bert, texts):
    return build_sense_dictionary(bert, texts, budget=90)


@pytest.mark.parametrize("value", [True, np.True_, 1.0, np.float32(1), math.nan, "1", None, [1], 0, 5, 10**400])
def test_what_is_no_integer_from_1_to_4(value):
    with pytest.raises(ValueError, match=r"name=.*: give an integer of at least 1 and below 5"):
        check_integer("name", value, 1, 5)


@pytest.mark.parametrize(
    "value", [True, np.True_, math.nan, math.inf, -math.inf, np.float16("nan"), "1", None, 0, -1e-9, 1.1, 10**400]
)
def test_what_is_no_number_above_0_and_of_at_most_1(value):
    with pytest.raises(ValueError, match="name=.*: give a finite number above 0 and of at most 1"):
        check_number("name", value, above=0, most=1)


def test_numbers_of_numpy_are_numbers():
    assert type(check_integer("name", np.int16(4), 1, 5)) is int
    assert type(check_number("name", np.float32(0.5), above=0, most=1)) is float and check_number("name", 3) == 3.0
    for path in ("", None, 3):
        with pytest.raises(ValueError, match="name="):
            check_path("name", path)


@pytest.mark.parametrize("number", [True, False, 2.0, math.nan, "2", 10**9, -1, [], [4], [True], [0.0]])
def test_layers(bert, senses, number):
    with pytest.raises(ValueError, match="num_hidden_layers="):
        SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=number)
    assert SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=np.int64(2)).config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", math.nan),
        ("learning_rate", 0),
        ("temperature", math.inf),
        ("label_temperature", math.nan),
        ("mse_weight", math.nan),
        ("sentence_weight", -1.0),
        ("weight_decay", math.nan),
        ("max_grad_norm", -1),
        ("warmup_steps", math.nan),
        ("num_train_epochs", 0),
        ("num_train_epochs", math.nan),
        ("max_steps", 0),
        ("max_steps", 1.5),
        ("seed", 1.5),
        ("seed", -1),
        ("seed", True),
        ("label_top_k", 2.0),
        ("label_top_k", 10**6),
        ("max_length", 0),
        ("per_device_train_batch_size", 0),
        ("per_device_eval_batch_size", True),
        ("gradient_accumulation_steps", 0),
        ("output_dir", ""),
    ],
)
def test_settings_of_training(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        SKDTrainingArguments(**{"output_dir": str(tmp_path), "report_to": "none", name: value})


def test_settings_of_numpy(tmp_path):
    args = SKDTrainingArguments(str(tmp_path), seed=np.int32(3), learning_rate=np.float32(0.5), report_to="none")
    assert type(args.seed) is int and args.learning_rate == 0.5


@pytest.mark.parametrize("value", [0, -1, 1.5, math.inf, None, True])
def test_lengths(value):
    with pytest.raises(ValueError, match="max_seq_length="):
        SKDStudentConfig(max_seq_length=value)


def test_other_doors(bert, senses, texts):
    for call, message in (
        (lambda: merge_sense_dictionaries([senses], math.nan), "budget="),
        (lambda: build_sense_dictionary(bert, texts, output_dir=""), "output_dir="),
        (lambda: build_sense_dictionary(bert, texts, update=""), "update="),
        (lambda: build_sense_dictionary(bert, texts, seed=1.5), "seed="),
        (lambda: distill_student(bert, senses, texts, output_dir=""), "output_dir="),
        (lambda: encode_senses(bert, senses, texts, top_k=10**6), "top_k="),
        (lambda: encode_senses(bert, senses, texts, temperature=math.nan), "temperature="),
        (lambda: encode_senses(bert, senses, texts, batch_size=2.0), "batch_size="),
        (lambda: bert.encode(texts, batch_size=True), "batch_size="),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def spoil(teacher, word):
    """Make the teacher's vectors of one word NaN."""
    with torch.no_grad():
        teacher.model.embeddings.word_embeddings.weight[teacher.tokenizer.convert_tokens_to_ids(word)] = math.nan


def arguments(tmp_path, **settings):
    return SKDTrainingArguments(
        str(tmp_path / "run"), **{"save_strategy": "no", "report_to": "none", "disable_tqdm": True, **settings}
    )


def test_vectors_of_the_teacher_while_labels_are_made(bert, senses, texts):
    spoil(bert, "w0")
    first = next(number for number, text in enumerate(texts) if "w0" in text.split())
    with pytest.raises(ValueError, match=f"NaN or infinite vectors for text {first}:"):
        encode_senses(bert, senses, texts, batch_size=1)


@pytest.mark.parametrize("objective", ["sense+mse", "mse", "sentence"])
def test_vectors_of_the_teacher_while_training(bert, senses, texts, tmp_path, objective):
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    args = arguments(tmp_path, objective=objective, per_device_train_batch_size=4, max_steps=9)
    trainer = SKDTrainer(student, args, bert, ["w5 w6 w7"] * 40 + ["w0"] * 8)
    spoil(bert, "w0")
    with pytest.raises(ValueError, match="step [1-9]: the teacher yields NaN or infinite vectors"):
        trainer.train()


@pytest.mark.parametrize("num_hidden_layers", [1, 0])
def test_a_student_that_explodes(bert, senses, texts, tmp_path, num_hidden_layers):
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=num_hidden_layers)
    args = arguments(
        tmp_path, learning_rate=1e30, table_learning_rate=1e30, warmup_steps=0, max_steps=9, max_grad_norm=0
    )
    with pytest.raises(ValueError, match=r"step \d: .*lower learning rate"):
        SKDTrainer(student, args, bert, texts).train()


def test_soft_labels_that_are_not_finite(bert, senses, texts, tmp_path):
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    encoded = encode_senses(bert, senses, texts, top_k=2)
    columns = encoded.to_dict()
    columns["probabilities"][3][2] = math.nan
    spoilt = Dataset.from_dict(columns, features=encoded.features, info=encoded.info)
    args = arguments(tmp_path, objective="sense", label_top_k=2)
    assert SKDTrainer(student, args, train_dataset=encoded)
    with pytest.raises(ValueError, match="probabilities that are negative or not finite"):
        SKDTrainer(student, args, train_dataset=spoilt)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_student_about_to_be_saved(bert, senses, tmp_path, bad):
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)
    student.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        next(student.parameters())[1, 2] = bad
    with pytest.raises(ValueError, match="is NaN or infinite, so the model is not saved"):
        student.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    senses.offsets[5] = 1000
    with pytest.raises(ValueError, match="offsets do not rise"):
        senses.save_pretrained(tmp_path)
