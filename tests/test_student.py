"""What a student returns, and what it shares with its teacher and its dictionary."""

import re
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import SIZES, build_once
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)
from transformers.utils import logging

from sensedict_hf import (
    SenseEmbeddingConfig,
    SKDStudentConfig,
    SKDStudentForSequenceClassification,
    SKDStudentModel,
    build_sense_dictionary,
    encode_senses,
    load_teacher,
    merge_sense_dictionaries,
)


@pytest.fixture
def senses(teacher, texts):
    return build_once(teacher, texts, budget=90)


def test_another_dictionary_takes_its_place(bert, texts, tmp_path):
    """A smaller dictionary and one in int8 give the senses that they give alone, before and after saving."""
    senses = build_sense_dictionary(bert, texts, budget=90)
    student = SKDStudentModel.from_teacher(bert, senses, assignment="soft", residual=0.25).eval()
    ids = torch.tensor([bert.tokenizer(texts[0])["input_ids"]])
    for number, other in enumerate([merge_sense_dictionaries([senses], 40), senses.to_dtype("int8")]):
        student.replace_senses(other)
        output = student(ids)
        expected = other(ids, output.student_hidden_state, assignment="soft", residual=0.25)
        torch.testing.assert_close(output.last_hidden_state, expected.hidden_states)
        student.save_pretrained(tmp_path / str(number))
        loaded = AutoModel.from_pretrained(tmp_path / str(number))
        assert torch.equal(loaded(ids).last_hidden_state, output.last_hidden_state)
        assert torch.equal(student.senses.senses_of("w1"), other.senses_of("w1"))
        assert (
            loaded.config.sense_config.num_senses == len(other.senses)
            and loaded.senses.senses.dtype == other.senses.dtype
        )
    with pytest.raises(ValueError, match="layer differs"):
        student.replace_senses(build_sense_dictionary(bert, texts, budget=90, layer=2))

    learning = AutoModel.from_pretrained(tmp_path / "0", learn_senses=True)
    learning.replace_senses(senses)
    assert learning.senses.senses.requires_grad and len(learning.senses.senses) == 90
    with pytest.raises(ValueError, match="int8 senses cannot be learned"):
        learning.replace_senses(senses.to_dtype("int8"))


def test_encode_does_not_depend_on_batches_or_padding(teacher, senses, texts):
    student = SKDStudentModel.from_teacher(teacher, senses)
    expected = torch.cat([student.encode([text]) for text in texts])
    torch.testing.assert_close(student.encode(texts, batch_size=7), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(student.encode(texts[0]), expected[0])


def test_senses_are_no_parameters(bert, texts):
    student = SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts, budget=90))
    assert not any("senses" in name for name, _ in student.named_parameters())
    assert {"senses.senses", "senses.offsets", "senses.usage"} <= student.state_dict().keys()


def test_a_dictionary_of_another_model_is_told(tokenizer, texts, tmp_path, caplog, monkeypatch):
    """The name of the teacher is compared, and, but for a head alone, its weights.

    The names of two checkpoints may be equal: two runs may both have saved a `checkpoint-500`.
    """
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    for name in ("one/checkpoint-500", "two/checkpoint-500", "two/checkpoint-900"):
        BertForSequenceClassification(BertConfig(**SIZES, max_position_embeddings=64)).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    senses = build_sense_dictionary(tmp_path / "one/checkpoint-500", texts, budget=90)
    student = SKDStudentModel.from_teacher(tmp_path / "one/checkpoint-500", senses)
    relabelled = AutoModelForSequenceClassification.from_pretrained(tmp_path / "one/checkpoint-500")
    relabelled.config.problem_type = "single_label_classification"  # as its first training step does

    def warnings_of(model):
        found = []
        for use in (
            lambda: SKDStudentForSequenceClassification.from_student(student, model),
            lambda: SKDStudentModel.from_teacher(load_teacher(model, tokenizer=tokenizer), senses),
            lambda: encode_senses(load_teacher(model, tokenizer=tokenizer), senses, texts),
        ):
            logging.get_logger("transformers").warning_once.cache_clear()
            caplog.clear()
            use()
            found.append(re.findall("the teacher is checkpoint-[0-9]*|with other weights", caplog.text))
        return found

    assert warnings_of(relabelled) == [[], [], []]
    for name, expected in [
        ("one/checkpoint-500", [[], [], []]),
        ("two/checkpoint-500", [[], ["with other weights"], ["with other weights"]]),
        ("two/checkpoint-900", [["the teacher is checkpoint-900"]] * 3),
    ]:
        assert warnings_of(AutoModelForSequenceClassification.from_pretrained(tmp_path / name)) == expected


def test_a_teacher_is_never_in_training_mode(bert, texts):
    expected = bert.encode(texts)
    bert.model.train()  # Trainer does the same
    assert torch.equal(bert.encode(texts), expected)


def test_senses_that_would_not_be_learned_are_refused(bert, texts, tmp_path):
    SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts), objective="mse").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="learn_senses=True with assignment 'none'"):
        AutoModel.from_pretrained(tmp_path, learn_senses=True)
    assert AutoModel.from_pretrained(tmp_path, learn_senses=True, assignment="soft").senses.senses.requires_grad


@pytest.mark.parametrize("kind", ["frozen", "learned", "adapted"])
def test_processes_do_not_send_each_other_the_dictionary(bert, texts, tmp_path, kind):
    """DistributedDataParallel leaves the dictionary out, but synchronizes senses that are learned.

    Fails if torch no longer reads the private attribute that names what to leave out.
    """
    SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts, budget=90)).save_pretrained(
        tmp_path / "student"
    )
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student", learn_senses=kind == "learned")
    if kind == "adapted":
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(model)
    finally:
        torch.distributed.destroy_process_group()
    sent = {name for name in dict(model.named_buffers()) if name not in parallel.parameters_to_ignore}
    kept = {name.rpartition("senses.")[2] for name in dict(model.named_buffers()).keys() - sent}
    assert kept == {"offsets", "usage", *["senses"] * (kind != "learned")} and not any(
        "senses" in name for name in sent
    )
    assert not parallel.parameters_to_ignore & dict(model.named_parameters()).keys()


def test_a_part_of_its_own_vectors(bert, texts, tmp_path):
    student = SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts, budget=90))
    student.save_pretrained(tmp_path)
    both = AutoModel.from_pretrained(tmp_path, residual=0.25)
    assert both.config.default_residual == 0.25 and student.config.default_residual == 0
    expected = 0.75 * student.encode(texts, assignment="soft") + 0.25 * student.encode(texts, assignment="none")
    torch.testing.assert_close(both.encode(texts), expected)
    both.save_pretrained(tmp_path)
    torch.testing.assert_close(AutoModel.from_pretrained(tmp_path).encode(texts), expected)
    for name, value, message in [
        ("residual", 1.5, "residual=1.5"),
        ("assignment", "sfot", "unknown assignment 'sfot'"),
        ("pooling", "average", "unknown pooling 'average'"),
    ]:
        with pytest.raises(ValueError, match=message):
            AutoModel.from_pretrained(tmp_path, **{name: value})


def test_what_a_student_returns_follows_from_its_objective():
    found = {}
    for objective in (None, "sense", "mse", "sense+mse", "sense+mse+sentence"):
        config = SKDStudentConfig(objective=objective)
        found[objective] = config.default_assignment, config.default_residual
    assert found == {
        None: ("soft", 0.0),
        "sense": ("soft", 0.0),
        "mse": ("none", 0.5),
        "sense+mse": ("soft", 0.5),
        "sense+mse+sentence": ("soft", 0.5),
    }
    directions = SKDStudentConfig(
        objective="sense+mse", sense_config=SenseEmbeddingConfig(hidden_size=768, similarity="cosine")
    )
    assert directions.default_residual == 0  # the lengths of its own vectors are not learned
    own = SKDStudentConfig(objective="sense+mse", assignment="hard", residual=0.0)
    assert (own.default_assignment, own.default_residual) == ("hard", 0.0)


def test_senses_in_a_text(bert, texts):
    senses = build_sense_dictionary(bert, texts, budget=90)
    student = SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=4).train()
    found = student.senses_in("w27 w26 nothing")
    assert student.training and [token.text for token in found] == ["w27", "w26", "nothing"]
    ids = student.tokenizer("w27 w26 nothing", return_tensors="pt")["input_ids"]
    best = student.eval()(ids, assignment="hard").sense_ids[0, 1:-1]
    assert [token.sense_id for token in found] == best.tolist()
    for token, token_id in zip(found[:2], ids[0, 1:3]):
        usage = senses.usage[senses.rows_of(int(token_id))]
        assert token.share == pytest.approx(float(usage[token.sense_id] / usage.sum()))
    assert found[2].sense_id == -1 and found[2].share == 0
    student.config.max_seq_length = 8
    with pytest.raises(ValueError, match="the text has 9 tokens, the student reads 8"):
        student.senses_in("w1 " * 7)


def test_only_another_model_of_another_name_is_warned_of(teacher, senses, caplog):
    SKDStudentModel.from_teacher(replace(teacher, name="a/copy"), senses, num_hidden_layers=1)
    assert "meaningless" not in caplog.text
    next(teacher.model.parameters()).data += 1
    SKDStudentModel.from_teacher(replace(teacher, name="another/model"), senses, num_hidden_layers=1)
    assert "the teacher is another/model" in caplog.text
