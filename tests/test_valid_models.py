"""What is not valid in a dictionary or student is refused: at load, by `sensedict verify`, or where it is read."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build_once
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from sensedict_hf import (
    LayerFreeConfig,
    SenseEmbeddingConfig,
    SenseEmbeddingModel,
    SKDStudentConfig,
    SKDStudentForSequenceClassification,
    SKDStudentModel,
    build_sense_dictionary,
    load_senses,
    merge_sense_dictionaries,
)
from sensedict_hf.cli import main


@pytest.fixture
def senses(bert, texts):
    return build_once(bert, texts, budget=90)


@pytest.fixture
def student(bert, senses):
    return SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1)


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format_version", 0),
        ("format_version", 2),
        ("format_version", "1"),
        ("format_version", True),
        ("distortion", -1.0),
        ("distortion", math.nan),
        ("distortion", math.inf),
        ("distortion", None),
        ("assignment_temperature", 0.0),
        ("assignment_temperature", math.nan),
        ("residual", math.nan),
        ("residual", "0.5"),
        ("hidden_size", 16.0),
        ("hidden_size", 15),
        ("vocab_size", -1),
        ("vocab_size", 10**12),
        ("num_senses", 10**12),
        ("num_senses", None),
        ("layer", "last"),
        ("similarity", "near"),
        ("senses_dtype", "float32"),
        ("senses_dtype", "bfloat16"),
        ("senses_dtype", "int8"),
        ("learn_senses", 1),
    ],
)
def test_a_config_that_is_not_valid(senses, tmp_path, name, value):
    senses.save_pretrained(tmp_path)
    change_config(tmp_path, **{name: value})
    with pytest.raises(ValueError, match=f"{name}|format|do not agree on"):
        SenseEmbeddingModel.from_pretrained(tmp_path)


def shift(tensors):
    tensors["offsets"] += 1


def drop_last(tensors):
    tensors["offsets"][-1] -= 1


def swap(tensors):
    tensors["offsets"][[9, 14]] = tensors["offsets"][[14, 9]]


def use_less(tensors):
    tensors["usage"][3] = -1


def scale(value):
    def change(tensors):
        tensors["scales"][3] = value

    return change


@pytest.mark.parametrize(
    ("dtype", "change", "message"),
    [
        ("float16", shift, "offsets do not rise from 0 to 90"),
        ("float16", drop_last, "offsets do not rise"),
        ("float16", swap, "offsets do not rise"),
        ("float16", use_less, "usage is negative"),
        ("int8", scale(-1.0), "scale is negative or not finite"),
        ("int8", scale(math.nan), "scale is negative or not finite"),
        ("int8", scale(math.inf), "scale is negative or not finite"),
        ("float16", lambda tensors: tensors.update(usage=tensors["usage"].int()), "do not agree on (senses.)?usage"),
    ],
)
@pytest.mark.parametrize("is_student", [False, True])
def test_tensors_that_are_not_valid(senses, student, tmp_path, dtype, change, message, is_student):
    senses = senses.to_dtype(dtype)
    student.replace_senses(senses)
    (student if is_student else senses).save_pretrained(tmp_path)

    def change_senses(tensors):
        prefix = "senses." if is_student else ""
        found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        change(found)
        tensors.update({prefix + name: tensor for name, tensor in found.items()})

    assert load_senses(tmp_path).config.num_senses == 90
    change_tensors(tmp_path, change_senses)
    with pytest.raises(ValueError, match=message):
        load_senses(tmp_path)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("similarity", ["l2", "cosine", "dot"])
def test_a_sense_that_is_not_finite_is_refused_where_it_is_read(bert, texts, bad, similarity, tmp_path, capsys):
    senses = build_sense_dictionary(bert, texts, budget=90, similarity=similarity)
    token = 30
    row = senses.rows_of(token).start
    senses.save_pretrained(tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors["senses"][row].fill_(bad))
    senses = load_senses(tmp_path)  # the table is not read
    hidden = torch.randn(1, 1, 16)
    ids = torch.tensor([[token]])
    for call in (
        lambda: senses(ids, hidden, assignment="hard"),
        lambda: senses(ids, hidden, assignment="soft"),
        lambda: senses.posterior(ids, hidden, top_k=2),
        lambda: senses.cross_entropy(ids, hidden, torch.zeros_like(ids)),
        lambda: senses.senses_of(token),
        lambda: senses.to_dtype("int8"),
        lambda: merge_sense_dictionaries([senses], 50),
    ):
        with pytest.raises(ValueError, match="a sense is NaN or infinite"):
            call()
    assert senses(ids - 1, hidden).hidden_states.isfinite().all() and senses.senses_of(token - 1).isfinite().all()
    assert main(["verify", str(tmp_path)]) == 2
    assert "senses: a sense is NaN or infinite" in capsys.readouterr().err


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_hidden_state_that_is_not_finite_has_no_sense(senses, bad):
    hidden, ids = torch.randn(1, 2, 16), torch.tensor([[5, 6]])
    hidden[0, 1, 3] = bad
    for assignment in ("hard", "soft"):
        with pytest.raises(ValueError, match="a hidden state is NaN or infinite"):
            senses(ids, hidden, assignment=assignment)
        padded = senses(ids, hidden, attention_mask=torch.tensor([[1, 0]]), assignment=assignment)
        assert padded.sense_ids.tolist()[0][1] == -1  # padding may be anything


def test_large_numbers_are_finite(senses):
    large = senses.to_dtype("float32")
    large.table[large.rows_of(30)] = 1e25
    assert int(large(torch.tensor([[30]]), torch.randn(1, 1, 16)).sense_ids) == 0


def test_no_weight_of_a_student_may_be_missing(student, tmp_path):
    student.save_pretrained(tmp_path)
    whole = {name: tensor.clone() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    for name in whole:
        save_file({key: value for key, value in whole.items() if key != name}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=f"do not agree on {name}"):
            AutoModel.from_pretrained(tmp_path)
        with pytest.raises(ValueError, match=name):
            AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    save_file(whole, tmp_path / "model.safetensors")
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3).classifier.out_features == 3


def test_only_a_new_head_may_be_missing(student, tmp_path):
    student.config.num_labels = 3
    model = SKDStudentForSequenceClassification(student.config)
    model.student.load_state_dict(student.state_dict())
    model.tokenizer = student.tokenizer
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="agree on classifier"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    resized = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert resized.classifier.out_features == 5
    with pytest.raises(ValueError, match="holds the head of a SKDStudentForSequenceClassification"):
        AutoModelForTokenClassification.from_pretrained(tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors.pop("classifier.bias"))
    with pytest.raises(ValueError, match="agree on classifier.bias"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_sizes_of_a_student_are_compared_before_anything_is_made(student, tmp_path):
    student.save_pretrained(tmp_path)
    text_config = json.loads((tmp_path / "config.json").read_text())["text_config"]
    for name in ("vocab_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings"):
        change_config(tmp_path, text_config={**text_config, name: 10**11})
        with pytest.raises(ValueError, match="do not agree on"):
            AutoModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


@pytest.mark.parametrize("kind", ["student", "senses"])
def test_only_safetensors_are_loaded(request, kind, tmp_path):
    model = request.getfixturevalue(kind)
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="only safetensors files are loaded"):
        type(model).from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="use_safetensors must be True"):
        AutoModel.from_pretrained(tmp_path, use_safetensors=False)


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_damaged_safetensors(student, tmp_path, size):
    student.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["../model-00001-of-00002.safetensors", "none.safetensors", 3])
def test_an_index_of_shards_names_files_of_its_folder(student, tmp_path, name):
    folder = tmp_path / "student"
    student.save_pretrained(folder, max_shard_size="4KB")
    assert torch.equal(AutoModel.from_pretrained(folder).senses.table, student.senses.table)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    for key in index["weight_map"]:
        index["weight_map"][key] = name
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names|weight_map"):
        AutoModel.from_pretrained(folder)


def test_fields_are_set_on_a_config_that_is_given(student, texts, tmp_path):
    """As sentence-transformers passes them on, by `model_kwargs`."""
    student.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, config=config, assignment="none", sense_device="cpu")
    assert (loaded.config.assignment, loaded.config.sense_device) == ("none", "cpu")
    assert (config.assignment, config.sense_device) == (None, None)  # the caller's stays
    expected = AutoModel.from_pretrained(tmp_path, assignment="none").encode(texts[:3])
    assert torch.equal(loaded.encode(texts[:3]), expected)
    with pytest.raises(ValueError, match="unknown assignment 'best'"):
        AutoModel.from_pretrained(tmp_path, config=config, assignment="best")
    with pytest.raises(ValueError, match=r"prompts\['query'\]=5: give the string"):
        AutoModel.from_pretrained(tmp_path, prompts={"query": 5})


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        (SenseEmbeddingConfig, {"num_senses": 5}),
        (SKDStudentConfig, {"residual": 0.5}),
        (SKDStudentConfig, {"sense_config": {"num_senses": 5}}),
        (LayerFreeConfig, {"context_size": 8}),
    ],
)
def test_configs_are_equal_if_their_fields_are(kind, changed):
    assert kind() == kind() and kind(**changed) == kind(**changed) and kind() != kind(**changed)


def test_a_student_without_a_language_model_head_is_none(student, tmp_path):
    student.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a SKDStudentModel, which has no language-model head"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_verify(bert, texts, student, tmp_path, capsys):
    build_sense_dictionary(bert, texts, budget=90, output_dir=tmp_path / "senses")
    student.save_pretrained(tmp_path / "student")
    assert main(["verify", str(tmp_path / "senses")]) == main(["verify", str(tmp_path / "student")]) == 0
    out = capsys.readouterr().out
    assert "SenseEmbeddingModel: " in out and " files as the manifest tells" in out and "SKDStudentModel: " in out
    (tmp_path / "senses" / "README.md").write_text("a card may be edited")
    assert main(["verify", str(tmp_path / "senses")]) == 0
    build_sense_dictionary(bert, texts, budget=90, output_dir=tmp_path / "senses")
    (tmp_path / "senses" / "tokenizer_config.json").write_text("{}")
    assert main(["verify", str(tmp_path / "senses")]) == 2
    assert "tokenizer_config.json is not the file" in capsys.readouterr().err
    change_tensors(tmp_path / "student", lambda tensors: tensors["backbone.embeddings.LayerNorm.bias"].fill_(math.nan))
    assert main(["verify", str(tmp_path / "student")]) == 2
