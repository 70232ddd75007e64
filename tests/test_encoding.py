"""`encode` and `encode_words`: what they take and return, how much they read at a time, which packages they need."""

import subprocess
import sys
from collections import UserDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_models import build_once, make_model
from transformers import AutoModel

from sensedict_hf import SKDStudentModel, build_sense_dictionary, load_teacher
from sensedict_hf.models import encoding
from sensedict_hf.models.prompts import Prompt, check_texts


@pytest.fixture(params=["teacher", "student"])
def encoder(request, bert, texts):
    if request.param == "teacher":
        return bert
    return SKDStudentModel.from_teacher(bert, build_once(bert, texts, budget=90), 2)


def test_one_text_and_no_texts(encoder, texts):
    assert encoder.encode(texts[0]).shape == (16,)
    assert torch.equal(encoder.encode(texts[0]), encoder.encode([texts[0]])[0])
    for nothing in ([], (), iter([]), np.array([])):
        assert encoder.encode(nothing).shape == (0, 16) and encoder.encode(nothing).dtype == torch.float32
    assert encoder.encode([], convert_to_numpy=True).shape == (0, 16)
    assert encoder.encode_words([]) == []


def test_arrays_and_vectors_of_length_one(encoder, texts):
    plain = encoder.encode(texts)
    assert plain.dtype == torch.float32 and plain.device.type == "cpu" and not plain.is_inference()
    array = encoder.encode(texts, convert_to_numpy=True)
    assert array.dtype == np.float32 and np.array_equal(array, plain.numpy())
    scaled = encoder.encode(texts, normalize_embeddings=True)
    torch.testing.assert_close(scaled, plain / plain.norm(dim=1, keepdim=True))
    one = encoder.encode(texts[0], normalize_embeddings=True, convert_to_numpy=True)
    assert one.shape == (16,) and abs(np.linalg.norm(one) - 1) < 1e-6


def test_any_iterable_of_texts(encoder, texts):
    expected = encoder.encode(texts)
    for given in (tuple(texts), iter(texts), np.array(texts), Dataset.from_dict({"text": texts})["text"]):
        assert torch.equal(encoder.encode(given), expected)
    sentences = [text.split() for text in texts]
    for found, vectors in zip(encoder.encode_words(iter(sentences)), encoder.encode_words(sentences), strict=True):
        assert torch.equal(found, vectors)


def test_a_generator_is_read_in_chunks(encoder, texts, monkeypatch):
    """In the order of the texts, whatever the chunks, and never more than one chunk ahead of the model."""
    expected = encoder.encode(texts)
    words = encoder.encode_words([text.split() for text in texts])
    monkeypatch.setattr(encoding, "CHUNK", 7)
    read, encoded = [], []

    def stream():
        for text in texts:
            read.append(text)
            yield text

    run = encoding.BatchEncoder._run

    def watch(self, rows, progress):
        encoded.extend(rows)
        assert len(read) == len(encoded)
        yield from run(self, rows, progress)

    monkeypatch.setattr(encoding.BatchEncoder, "_run", watch)
    torch.testing.assert_close(encoder.encode(stream(), batch_size=3), expected, rtol=1e-4, atol=1e-5)
    assert read == texts
    read, encoded = [], []
    for found, vectors in zip(encoder.encode_words(text.split() for text in stream()), words, strict=True):
        torch.testing.assert_close(found, vectors, rtol=1e-4, atol=1e-5)


def test_a_list_is_read_in_chunks_and_checked_first(encoder, texts, monkeypatch):
    """A list is not tokenized at once. Yet a wrong text at its end is found before the model runs."""
    expected = encoder.encode(texts)
    monkeypatch.setattr(encoding, "CHUNK", 7)
    sizes, run = [], encoding.BatchEncoder._run

    def watch(self, rows, progress):
        sizes.append(len(rows))
        yield from run(self, rows, progress)

    monkeypatch.setattr(encoding.BatchEncoder, "_run", watch)
    torch.testing.assert_close(encoder.encode(texts), expected, rtol=1e-4, atol=1e-5)
    assert sum(sizes) == len(texts) and max(sizes) == 7
    sizes.clear()
    with pytest.raises(ValueError, match=f"text {len(texts)} is of type NoneType"):
        encoder.encode([*texts, None])
    assert not sizes


def test_what_is_not_a_text_is_told_by_its_number_and_type(encoder, texts, monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK", 7)
    for number, wrong in ((3, None), (20, 1.5), (33, ["w1", "w2", "w3"]), (8, b"w1")):
        given = [*texts[:number], wrong, *texts]
        for form in (given, iter(given)):
            with pytest.raises(ValueError, match=f"text {number} is of type {type(wrong).__name__}"):
                encoder.encode(form)
    check_texts(["w1", ("w1", "w2"), ["w1", "w2"]])


@pytest.mark.parametrize(
    "given", [{"text": ["w1"]}, UserDict(text=["w1"]), b"w1", Dataset.from_dict({"text": ["w1"]})]
)
def test_tables_are_refused(encoder, given):
    with pytest.raises(ValueError, match=f"texts is a {type(given).__name__}: pass a list of strings"):
        encoder.encode(given)


def test_sentences_that_are_no_lists_of_words(encoder):
    with pytest.raises(ValueError, match="sentence 1 is one string: pass each sentence as a list of words"):
        encoder.encode_words([["w1"], "w1 w2"])
    with pytest.raises(ValueError, match="sentence 1 has a word of type int"):
        encoder.encode_words([["w1"], ["w2", 3]])


def test_wrong_options(encoder):
    with pytest.raises(ValueError, match="batch_size=0: give an integer of at least 1"):
        encoder.encode(["w1"], batch_size=0)
    with pytest.raises(TypeError, match="normalise"):
        encoder.encode([], normalise=True)


def test_an_assignment_is_an_option_of_students(bert, texts):
    student = SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts, budget=90), 2).train()
    hard, none = (student.encode(texts, assignment=assignment) for assignment in ("hard", "none"))
    assert not student.training and not torch.equal(hard, none)
    with pytest.raises(TypeError, match="assignment"):
        bert.encode(texts, assignment="hard")


@pytest.mark.parametrize(
    "given, count, shown", [(None, 60, True), (None, 32, False), (True, 1, True), (False, 60, False), (None, 0, False)]
)
def test_when_a_progress_bar_is_shown(bert, texts, monkeypatch, given, count, shown):
    bars = []
    tqdm = encoding.tqdm
    monkeypatch.setattr(
        encoding, "tqdm", lambda **options: bars.append(options) or tqdm(**options | {"disable": True})
    )
    bert.encode(texts[:count], show_progress_bar=given)
    bert.encode(iter(texts[:count]), show_progress_bar=given)
    assert [bar["disable"] for bar in bars] == [not shown] * 2
    assert [bar["total"] for bar in bars] == [-(-count // 32), None]


@pytest.mark.parametrize("include_prompt", [True, False])
def test_named_prompts(encoder, bert, texts, include_prompt):
    prompts = {"query": "w20 w21 ", "document": ""}
    if encoder is bert:
        encoder = replace(bert, prompts=prompts, include_prompt=include_prompt)
        alone = replace(bert, prompt=Prompt("w20 w21 {text}", pooled="all" if include_prompt else "text"))
    else:
        encoder.config.prompts, encoder.config.include_prompt = prompts, include_prompt
        alone = SKDStudentModel.from_teacher(bert, build_sense_dictionary(bert, texts, budget=90), 2)
        alone.config.prompt = {"template": "w20 w21 {text}", "pooled": "all" if include_prompt else "text"}
    assert torch.equal(encoder.encode(texts, prompt_name="query"), alone.encode(texts))
    assert torch.equal(encoder.encode(texts, prompt_name="document"), encoder.encode(texts))
    with pytest.raises(ValueError, match="unknown prompt_name='passage': choose one of query, document"):
        encoder.encode(texts, prompt_name="passage")


def test_a_model_without_named_prompts(encoder):
    with pytest.raises(ValueError, match="unknown prompt_name='query': this model has no named prompts"):
        encoder.encode("w1", prompt_name="query")


HIDDEN = """
import sys
for name in ("accelerate", "datasets", "peft", "pyarrow", "scipy", "sklearn"):
    sys.modules[name] = None  # importing it fails
import torch
from sensedict_hf import SKDStudentModel, load_teacher
teacher, student, expected, adapter = sys.argv[1:]
found = [load_teacher(teacher).encode(["w1 w2"]), SKDStudentModel.from_pretrained(student).encode(["w1 w2"])]
for vectors, others in zip(found, torch.load(expected)):
    assert torch.equal(vectors, others)
try:
    load_teacher(teacher, adapters=adapter)
except ImportError as error:
    assert "pip install peft" in str(error), error
else:
    raise AssertionError("an adapter was loaded without peft")
"""


@pytest.mark.slow
def test_models_encode_without_the_packages_that_build_and_distil(teacher_folder, texts, tmp_path):
    teacher = load_teacher(teacher_folder)
    student = SKDStudentModel.from_teacher(teacher, build_sense_dictionary(teacher, texts, budget=90), 2)
    student.save_pretrained(tmp_path / "student")
    get_peft_model(make_model("bert"), LoraConfig(target_modules=["query"])).save_pretrained(tmp_path / "adapter")
    torch.save([teacher.encode(["w1 w2"]), student.encode(["w1 w2"])], tmp_path / "expected.pt")
    folders = [teacher_folder, tmp_path / "student", tmp_path / "expected.pt", tmp_path / "adapter"]
    subprocess.run([sys.executable, "-c", HIDDEN, *map(str, folders)], check=True, capture_output=True, text=True)


def test_a_wrong_sentence_at_the_end_of_a_list_is_found_before_the_work(encoder, monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK", 2)
    monkeypatch.setattr(encoding.BatchEncoder, "_run", None)
    with pytest.raises(ValueError, match="sentence 5 is one string: pass each sentence as a list of words"):
        encoder.encode_words([["w1"]] * 5 + ["w1 w2"])


def test_the_side_of_truncation_is_saved(bert, senses, texts, tmp_path):
    bert.tokenizer.truncation_side = "left"
    student = SKDStudentModel.from_teacher(bert, senses)
    student.save_pretrained(tmp_path)
    long = " ".join(texts)
    torch.testing.assert_close(AutoModel.from_pretrained(tmp_path).encode(long), student.encode(long))
