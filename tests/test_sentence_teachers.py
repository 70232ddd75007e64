"""Objects of sentence-transformers and static models as teachers, with the same vectors as there."""

import numpy as np
import pytest
import torch
from tiny_models import WORDS, make_tokenizer
from tokenizers import Tokenizer

from sensedict_hf import (
    SKDStudentModel,
    SKDTrainer,
    SKDTrainingArguments,
    build_sense_dictionary,
    load_teacher,
)

sentence_transformers = pytest.importorskip("sentence_transformers")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
TEXTS = ["w5 w6 w7", "w9 W3", " ".join(WORDS)]


def agree(teacher, model, **options):
    expected = model.encode(TEXTS, **options)
    np.testing.assert_allclose(teacher.encode(TEXTS, convert_to_numpy=True, **options), expected, atol=1e-5)


@pytest.fixture
def static():
    """A static model of sentence-transformers. Its tokenizer would add special tokens."""
    tokenizer = Tokenizer.from_str(make_tokenizer().backend_tokenizer.to_str())
    embedding = modules.StaticEmbedding(tokenizer, embedding_dim=16)
    return sentence_transformers.SentenceTransformer(modules=[embedding, modules.Normalize()], device="cpu")


def test_a_sentence_transformer_is_a_teacher(teacher_folder, texts, tmp_path):
    transformer = modules.Transformer(str(teacher_folder), max_seq_length=12, do_lower_case=True)
    parts = [transformer, modules.Pooling(16, "max"), modules.Dense(16, 8), modules.Normalize()]
    settings = {"prompts": {"query": "w1 w2 "}, "default_prompt_name": "query", "truncate_dim": 4, "device": "cpu"}
    model = sentence_transformers.SentenceTransformer(modules=parts, similarity_fn_name="dot", **settings)
    teacher = load_teacher(model)
    assert teacher.name == "teacher" and teacher.similarity_fn_name == "dot" and teacher.max_seq_length == 12
    agree(teacher, model)
    agree(teacher, model, prompt_name="query")

    assert teacher.fingerprint() == load_teacher(teacher_folder, pooling="mean").fingerprint()
    # The object itself is given to all that take a teacher.
    senses = build_sense_dictionary(model, texts, budget=90)
    student = SKDStudentModel.from_teacher(model, senses)
    args = SKDTrainingArguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True, save_strategy="no")
    SKDTrainer(student, args, teacher=model, train_dataset=texts).train()
    assert student.encode(TEXTS).shape == (3, 4)
    agree(teacher, model)  # it is as it was
    # As an object and from its folder it is the same teacher.
    model.save(str(tmp_path / "saved"))
    saved = load_teacher(tmp_path / "saved")
    assert saved.fingerprint() == teacher.fingerprint()
    torch.testing.assert_close(saved.encode(TEXTS), teacher.encode(TEXTS))


def test_what_it_has_more_is_refused_by_name(teacher_folder):
    transformer, pooling = modules.Transformer(str(teacher_folder)), modules.Pooling(16, ["mean", "max"])
    model = sentence_transformers.SentenceTransformer(modules=[transformer, pooling], device="cpu")
    with pytest.raises(ValueError, match=r"unknown pooling 'mean\+max'"):
        load_teacher(model)
    assert load_teacher(model, pooling="mean").pooling == "mean"
    with pytest.raises(ValueError, match="dtype= cannot be given with .* an object of sentence-transformers"):
        load_teacher(model, dtype="float16")


def test_a_static_model_is_a_teacher(static, texts, tmp_path):
    static.save(str(tmp_path / "static"))
    for source in (static, tmp_path / "static"):
        teacher = load_teacher(source)
        agree(teacher, static)
    # Each token has one sense, which is its vector.
    senses = build_sense_dictionary(static, texts, senses_per_token=3, sample_dtype="float32", senses_dtype="float32")
    table = teacher.model.token_embeddings.weight.detach()
    torch.testing.assert_close(senses.senses_of("w9"), table[senses.token_id("w9")][None])
    # A student without layers can start from it and learn from it; one with layers cannot.
    student = SKDStudentModel.from_teacher(static, senses, 0)
    args = SKDTrainingArguments(str(tmp_path / "out"), max_steps=1, report_to="none", use_cpu=True, save_strategy="no")
    SKDTrainer(student, args, teacher=static, train_dataset=texts).train()
    student.save_pretrained(tmp_path / "student")
    assert type(student).from_pretrained(tmp_path / "student").encode(TEXTS).shape == (3, 16)
    with pytest.raises(ValueError, match="has no layers.*num_hidden_layers=0"):
        SKDStudentModel.from_teacher(static, senses, 2)
    with pytest.raises(ValueError, match="has no layers"):
        build_sense_dictionary(static, texts, budget=90, layer=1)
    with pytest.raises(ValueError, match="bidirectional= with a static model"):
        load_teacher(static, bidirectional=True)


def test_a_static_model_of_model2vec_is_a_teacher(tmp_path):
    StaticModel = pytest.importorskip("model2vec").StaticModel
    backend = make_tokenizer().backend_tokenizer
    generator = np.random.default_rng(0)
    options = {"token_mapping": generator.integers(0, 9, 32), "weights": generator.random(32).astype("float32")}
    vectors = generator.normal(size=(9, 16)).astype("float32")
    model = StaticModel(vectors, Tokenizer.from_str(backend.to_str()), normalize=True, **options)
    model.save_pretrained(tmp_path)
    texts = ["w5 w6 w7", " ".join(WORDS)]
    for source in (model, tmp_path):
        teacher = load_teacher(source)
        np.testing.assert_allclose(teacher.encode(texts, convert_to_numpy=True), model.encode(texts), atol=1e-5)
