"""Queries by a student on the index of its teacher."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from test_folder_code import run
from tiny_models import make_model, make_tokenizer

from sensedict_hf import SKDStudentModel, build_sense_dictionary, load_teacher, save_router

EXAMPLE = Path(__file__).parents[1] / "examples" / "swap_query_model.py"


@pytest.fixture
def teacher(tmp_path):
    """A tiny SentenceTransformer with prompts, and its folder."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    make_model("bert").save_pretrained(tmp_path / "encoder")
    make_tokenizer().save_pretrained(tmp_path / "encoder")
    parts = [modules.Transformer(str(tmp_path / "encoder")), modules.Pooling(16, "mean"), modules.Normalize()]
    prompts = {"query": "w1 ", "document": ""}
    model = sentence_transformers.SentenceTransformer(modules=parts, device="cpu", prompts=prompts)
    model.save(str(tmp_path / "teacher"))
    return model


@pytest.fixture
def student(teacher, texts, tmp_path):
    loaded = load_teacher(tmp_path / "teacher")
    return SKDStudentModel.from_teacher(loaded, build_sense_dictionary(loaded, texts, budget=90))


@pytest.mark.slow
def test_one_folder_holds_both(teacher, student, texts, tmp_path):
    save_router(student, teacher, tmp_path / "router")
    script = f"""
from sentence_transformers import SentenceTransformer
model = SentenceTransformer({str(tmp_path / "router")!r}, device="cpu", trust_remote_code=True)
texts = {texts[:5]!r}
found = [model.encode_query(texts).tolist(), model.encode_document(texts).tolist(), model.prompts]
"""
    queries, documents, prompts = run(script, tmp_path)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(torch.tensor(queries), student.encode(texts[:5], prompt_name="query"), **close)
    torch.testing.assert_close(torch.tensor(documents), torch.from_numpy(teacher.encode_document(texts[:5])), **close)
    assert prompts == teacher.prompts


def test_the_vectors_must_be_of_one_width(teacher, student, tmp_path):
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    teacher.append(modules.Dense(16, 8))
    with pytest.raises(ValueError, match="the student are 16 wide, those of the teacher 8"):
        save_router(student, teacher, tmp_path / "router")


def test_the_example_swaps_the_model(student, texts, tmp_path, capsys):
    pytest.importorskip("faiss")
    student.save_pretrained(tmp_path / "student")
    for name in ("documents", "queries"):
        rows = [json.dumps({"text": text}) for text in (texts if name == "documents" else texts[:7])]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    spec = importlib.util.spec_from_file_location("swap_query_model", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    files = [f"--{name}={tmp_path / name}.jsonl" for name in ("documents", "queries")]
    same = example.main([f"--student={tmp_path / 'student'}", f"--teacher={tmp_path / 'teacher'}", *files])
    assert 0 < same <= 1 and "60 documents, encoded once by the teacher; 7 queries" in capsys.readouterr().out


def test_queries_keep_the_students_own_prompt(teacher, texts, tmp_path):
    teacher.prompts = {}
    teacher.save(str(tmp_path / "teacher"))
    loaded = load_teacher(tmp_path / "teacher", instruction="w4 w5")
    student = SKDStudentModel.from_teacher(loaded, build_sense_dictionary(loaded, texts, budget=90))
    save_router(student, teacher, tmp_path / "router")
    model = type(teacher)(str(tmp_path / "router"), device="cpu", trust_remote_code=True)
    found = torch.from_numpy(model.encode_query(texts[:5]))
    torch.testing.assert_close(found, student.encode(texts[:5]), rtol=1e-4, atol=1e-5)
