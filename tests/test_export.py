"""The look-up in a form that torch can trace, and students in ONNX."""

import copy
from pathlib import Path

import pytest
import torch
from tiny_models import build_once
from torch.nn import functional as F
from transformers import AutoModel

from sensedict_cli import main
from sensedict_hf import (
    SKDStudentForSequenceClassification,
    SKDStudentModel,
)
from sensedict_hf.models import onnx_export, static_lookup
from sensedict_hf.models.configuration_sense_embedding import SIMILARITIES
from sensedict_hf.models.sense_lookup import RaggedSenses, assign_senses, store_senses
from sensedict_hf.models.static_lookup import assign_padded, is_padding_faster


@pytest.fixture
def make_student(bert, texts):
    """Make a student with senses of uneven number, without senses for some tokens."""

    def make(similarity="l2", **config):
        senses = build_once(bert, texts[:20], budget=80, similarity=similarity)
        return SKDStudentModel.from_teacher(bert, senses, num_hidden_layers=1, **config).eval()

    return make


def batch_of(student, texts):
    batch = student.tokenizer(texts, padding=True, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("temperature", [None, 0.7])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_padded_look_up_is_the_grouped_one(similarity, temperature, dtype, monkeypatch):
    """In steps of 3 senses: some tokens end inside a step, one has no senses and is the last of the table."""
    monkeypatch.setattr(static_lookup, "STEP", 3)
    sizes = torch.tensor([3, 0, 1, 11, 7, 0])
    table, scales = store_senses(torch.randn(22, 6) * torch.rand(22, 1) * 5, dtype)
    senses = RaggedSenses(table, F.pad(sizes.cumsum(0), (1, 0)), similarity, scales)
    token_ids = torch.tensor([3, 0, 1, 4, -1, 3, 2, 0, 5, 3])
    hidden = torch.randn(len(token_ids), 6)
    expected = assign_senses(hidden, token_ids, senses, temperature)
    vectors, sense_ids, _ = assign_padded(hidden, token_ids, senses, 11, temperature)
    assert torch.equal(sense_ids, expected.sense_ids)
    torch.testing.assert_close(vectors, expected.vectors, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [None, 0.7])
@pytest.mark.parametrize("most", [1, 4])
def test_the_form_that_is_chosen_learns_and_checks_like_the_other(most, temperature):
    sizes = torch.tensor([most, 0, 1])
    table = torch.randn(most + 1, 6, requires_grad=True)
    senses = RaggedSenses(table, F.pad(sizes.cumsum(0), (1, 0)))
    token_ids, hidden = torch.tensor([0, 2, 1, 0]), torch.randn(4, 6)
    assert is_padding_faster(hidden, senses, most) and not is_padding_faster(torch.randn(4096, 384), senses, 2)
    gradients = []
    for number in (None, most):
        vectors, _ = assign_senses(hidden, token_ids, senses, temperature, number)
        gradients += torch.autograd.grad(vectors.square().sum(), table)
    torch.testing.assert_close(*gradients)
    hidden[1] = torch.nan
    with pytest.raises(ValueError, match="a hidden state is NaN"):
        assign_senses(hidden, token_ids, senses, temperature, most)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("assignment", "similarity", "dtype"), [("hard", "cosine", "int8"), ("soft", "dot", "float16")]
)
def test_a_student_is_exported_and_compiled_with_its_senses(make_student, texts, assignment, similarity, dtype):
    student = make_student(similarity, assignment=assignment, residual=0.25)
    student.replace_senses(student.senses.to_dtype(dtype))
    small, large = batch_of(student, texts[:3]), batch_of(student, texts[3:20])
    with torch.no_grad():
        expected = student(**large)
        sizes = dict.fromkeys(small, {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC})
        exported = torch.export.export(student, (), small, dynamic_shapes=sizes).module()
        forms = [exported]
        if assignment == "hard":  # one is enough, as both are traced in the same way
            forms.append(torch.compile(student, fullgraph=True, dynamic=True, backend="eager"))
        for form in forms:
            output = form(**large)
            assert torch.equal(output.sense_ids, expected.sense_ids)
            torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state, rtol=1e-5, atol=1e-5)


def test_a_classifier_is_exported(make_student, texts, tmp_path):
    make_student().save_pretrained(tmp_path)
    model = SKDStudentForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    sizes = dict.fromkeys(("input_ids", "attention_mask"), {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC})
    exported = torch.export.export(model, (), batch_of(model, texts[:3]), dynamic_shapes=sizes).module()
    batch = batch_of(model, texts[3:20])
    torch.testing.assert_close(exported(**batch).logits, model(**batch).logits, rtol=1e-5, atol=1e-5)


def test_a_dictionary_in_which_a_token_gains_senses_is_exported_with_them(make_student):
    """The number that a tracer cannot read is that of the tensors now, not of the first call."""
    student = make_student()
    batch = batch_of(student, ["the"])
    student(**batch)
    offsets = student.senses.offsets
    offsets.copy_(torch.full_like(offsets, len(student.senses.table)))
    offsets[: int(batch["input_ids"][0, 1]) + 1] = 0  # all senses belong to one token
    expected = student(**batch)
    output = torch.export.export(student, (), batch).module()(**batch)
    assert torch.equal(output.sense_ids, expected.sense_ids)


def test_a_student_that_was_never_used_is_compiled(make_student, texts):
    student = make_student(assignment="hard")
    batch = batch_of(student, texts[:3])
    compiled = torch.compile(student, fullgraph=True, backend="eager", dynamic=True)
    found = compiled(**batch).sense_ids
    assert torch.equal(found, student(**batch).sense_ids)
    # And one whose dictionary was replaced in place.
    offsets = student.senses.offsets
    senses = torch.full_like(offsets, len(student.senses.table))
    senses[: int(batch["input_ids"][0, 1]) + 1] = 0  # all senses belong to one token
    student.senses.load_state_dict(student.senses.state_dict() | {"offsets": senses})
    compiled = torch.compile(student, fullgraph=True, backend="eager", dynamic=True)
    assert torch.equal(compiled(**batch).sense_ids, student(**batch).sense_ids)


def test_models_are_made_and_copied_without_counting_versions(make_student, texts):
    with torch.inference_mode():
        student = copy.deepcopy(make_student())
        batch = batch_of(student, texts[:3])
        assert torch.equal(student(**batch).sense_ids, student(**batch).sense_ids)


def test_what_cannot_be_exported_is_refused_before_anything_is_written(make_student, tmp_path):
    student = make_student()
    cases = [
        (student.senses, {}, "pass a student"),
        ("student", {}, "pass a student"),
        (student, {"tolerance": "0.1"}, "tolerance='0.1'"),
        (student, {"tolerance": 0}, "tolerance=0"),
        (make_student().to(torch.bfloat16), {}, "load it with dtype=torch.float32"),
    ]
    for given, options, message in cases:
        with pytest.raises(ValueError, match=message):
            onnx_export.export_onnx(given, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_student_in_onnx(make_student, texts, tmp_path, monkeypatch, capsys):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    student = make_student(assignment="hard", residual=0.5)
    student.save_pretrained(tmp_path / "student")
    assert main(["export", str(tmp_path / "student"), "--output", str(tmp_path / "out"), "--int8"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "onnx/model.onnx: " in first and "onnx/model_quantized.onnx: " in second

    # The file takes other sizes than those it was made with, and the folder is still a student.
    batch = batch_of(student, texts)
    with torch.no_grad():
        expected = AutoModel.from_pretrained(tmp_path / "out")(**batch)
    inputs = {name: tensor.numpy() for name, tensor in batch.items()}
    for name, least in (("model.onnx", 0.99999), ("model_quantized.onnx", 0.95)):
        vectors, sense_ids = runtime.InferenceSession(tmp_path / "out" / "onnx" / name).run(None, inputs)
        is_same = sense_ids == expected.sense_ids.numpy()
        assert is_same.mean() > 0.9
        cosines = F.cosine_similarity(torch.from_numpy(vectors), expected.last_hidden_state, dim=-1)
        assert float(cosines[torch.from_numpy(is_same) & (batch["attention_mask"] > 0)].min()) > least

    # A file that differs is an error, and so is a folder that is not empty.
    assert main(["export", str(tmp_path / "student"), "--output", str(tmp_path / "out")]) == 2
    assert "is not empty" in capsys.readouterr().err
    # What failed leaves nothing, so that the command can be repeated with another tolerance.
    model = (tmp_path / "out" / "onnx" / "model.onnx").read_bytes()
    monkeypatch.setattr(torch.onnx, "export", lambda _, args, file, **options: Path(file).write_bytes(model))
    again = ["export", str(tmp_path / "student"), "--output", str(tmp_path / "again"), "--tolerance", "1e-12"]
    assert main(again) == 2 and "is not the student" in capsys.readouterr().err
    assert not list((tmp_path / "again").iterdir())
    wrong = {"last_hidden_state": expected.last_hidden_state * 1.01, "sense_ids": expected.sense_ids}
    with pytest.raises(ValueError, match="is not the student: its vectors differ by up to 0.0099 of their length"):
        onnx_export._compare(tmp_path / "out" / "onnx" / "model.onnx", batch, wrong, 1e-3)
    assert not (tmp_path / "out" / "onnx" / "model.onnx").exists()  # nobody shall take it for the student
