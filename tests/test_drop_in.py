"""In sentence-transformers a student takes the place of its teacher: all agrees but the vectors' values."""

import json

import pytest
import torch
from datasets import Dataset
from tiny_models import WORDS, make_model, make_tokenizer
from transformers import AutoModel

from sensedict_hf import Prompt, SKDStudentModel, build_sense_dictionary, load_teacher
from sensedict_hf.cli import main

sentence_transformers = pytest.importorskip("sentence_transformers")
losses = pytest.importorskip("sentence_transformers.losses")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")

PROMPTS = {"query": "w1 w2 ", "document": ""}


def dense(**settings):
    torch.manual_seed(1)
    return modules.Dense(16, 8, **settings)


# For each kind of teacher the pooling, the modules after it, and settings of the whole.
KINDS = {
    "mean": ("mean", [], {"similarity_fn_name": "dot"}),
    "cls, length 1": ("cls", [modules.Normalize()], {"similarity_fn_name": "cosine"}),
    "dense, length 1": ("mean", [dense(), modules.Normalize()], {"truncate_dim": 4}),
    "dense alone": ("mean", [dense(bias=False, activation_function=torch.nn.Identity())], {}),
    "prompts": ("mean", [], {"prompts": PROMPTS, "default_prompt_name": "query"}),
    "prompts, not pooled": ("mean", [], {"prompts": PROMPTS, "default_prompt_name": "query"}),
    "last": ("lasttoken", [modules.Normalize()], {"similarity_fn_name": "euclidean"}),
}


@pytest.fixture(params=KINDS)
def teacher(request, tmp_path):
    """A tiny SentenceTransformer, saved and loaded."""
    torch.manual_seed(0)
    pooling, after, settings = KINDS[request.param]
    folder = tmp_path / "encoder"
    make_model("llama" if pooling == "lasttoken" else "bert").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    transformer = modules.Transformer(str(folder), max_seq_length=12)
    options = {"include_prompt": "not pooled" not in request.param}
    pool = modules.Pooling(16, pooling_mode=pooling, **options)
    made = sentence_transformers.SentenceTransformer(modules=[transformer, pool, *after], device="cpu", **settings)
    made.save(str(tmp_path / "teacher"))
    return sentence_transformers.SentenceTransformer(str(tmp_path / "teacher"), device="cpu")


def make_student(tmp_path, texts):
    loaded = load_teacher(tmp_path / "teacher")
    student = SKDStudentModel.from_teacher(loaded, build_sense_dictionary(loaded, texts, budget=90), 2)
    student.save_pretrained(tmp_path / "student")
    return loaded, student


def test_a_student_takes_the_place_of_its_teacher(teacher, texts, tmp_path):
    loaded, student = make_student(tmp_path, texts)
    texts = [*texts[:4], " ".join(WORDS)]  # one that is cut
    own = sentence_transformers.SentenceTransformer(str(tmp_path / "student"), device="cpu")
    # All settings agree, and the modules.
    for name in ("similarity_fn_name", "truncate_dim", "max_seq_length", "prompts", "default_prompt_name"):
        assert getattr(own, name) == getattr(teacher, name), name
    assert own.get_embedding_dimension() == teacher.get_embedding_dimension()
    assert [type(module) for module in own] == [type(module) for module in teacher]
    # So do the vectors' sizes and lengths; and whoever encodes, the vectors are the same.
    expected, found = teacher.encode(texts), own.encode(texts)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    if any(isinstance(module, modules.Normalize) for module in teacher) and teacher.truncate_dim is None:
        assert found == pytest.approx(found / (found**2).sum(1, keepdims=True) ** 0.5, abs=1e-5)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(student.encode(texts), torch.from_numpy(found), **close)
    torch.testing.assert_close(loaded.encode(texts), torch.from_numpy(expected), **close)
    for name in teacher.prompts:
        torch.testing.assert_close(
            student.encode(texts, prompt_name=name), torch.from_numpy(own.encode(texts, prompt_name=name)), **close
        )
    again = type(student).from_pretrained(tmp_path / "student")
    assert torch.equal(again.encode(texts), student.encode(texts))


def test_no_prompt_is_pooled_otherwise(bert, texts, tmp_path):
    """sentence-transformers opens a student with a prompt only if it then gives the same vectors."""
    senses = build_sense_dictionary(bert, texts, budget=90)
    close = {"rtol": 1e-4, "atol": 1e-5}
    for number, (prompt, opens) in enumerate(
        [
            (Prompt(instruction="w1 w2"), True),
            (Prompt("w3 {text}", pooled="all"), True),
            (Prompt("w3 {text} w4"), False),
            (Prompt(pooled="text_and_tail", instruction="w1"), False),
        ]
    ):
        bert.prompt, folder = prompt, tmp_path / str(number)
        student = SKDStudentModel.from_teacher(bert, senses, 2)
        student.save_pretrained(folder)
        if opens:
            model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
            torch.testing.assert_close(torch.from_numpy(model.encode(texts)), student.encode(texts), **close)
        else:
            for trust in (False, True):
                with pytest.raises((ValueError, AttributeError, ImportError), match="only_its_own_encode_pools_right"):
                    sentence_transformers.SentenceTransformer(str(folder), device="cpu", trust_remote_code=trust)


def test_what_sentence_transformers_has_trained_is_loaded_here_too(texts, tmp_path):
    """Its trainer changes dense layers too, and its card says nothing of the code."""
    make_model("bert").save_pretrained(tmp_path / "encoder")
    make_tokenizer().save_pretrained(tmp_path / "encoder")
    parts = [modules.Transformer(str(tmp_path / "encoder")), modules.Pooling(16), dense(), modules.Normalize()]
    teacher = sentence_transformers.SentenceTransformer(modules=parts, device="cpu")
    SKDStudentModel.from_teacher(teacher, build_sense_dictionary(teacher, texts, budget=90)).save_pretrained(
        tmp_path / "student"
    )
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "student"), device="cpu")
    sentence_transformers.SentenceTransformerTrainer(
        model=model,
        args=sentence_transformers.SentenceTransformerTrainingArguments(
            str(tmp_path / "run"), max_steps=3, learning_rate=0.01, report_to="none", use_cpu=True, save_strategy="no"
        ),
        train_dataset=Dataset.from_dict({"anchor": texts[:8], "positive": texts[8:16]}),
        loss=losses.MultipleNegativesRankingLoss(model),
    ).train()
    assert not torch.equal(model[2].linear.weight, teacher[2].linear.weight)
    model.append(modules.Dense(8, 4))  # and a layer of its own
    model.save(str(tmp_path / "trained"))
    close = {"rtol": 1e-4, "atol": 1e-5}
    student = AutoModel.from_pretrained(tmp_path / "trained")
    expected = torch.from_numpy(model.encode(texts))
    torch.testing.assert_close(student.encode(texts), expected, **close)
    assert [step["kind"] for step in student.config.sentence_head] == ["dense", "normalize", "dense"]
    # It is saved like this, with a card that says how it loads; the other library's card is completed.
    student.save_pretrained(tmp_path / "again")
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "again"), device="cpu")
    torch.testing.assert_close(torch.from_numpy(again.encode(texts)), expected, **close)
    path = tmp_path / "trained" / "README.md"
    assert "trust_remote_code" not in path.read_text() and main(["card", str(tmp_path / "trained")]) == 0
    assert "trust_remote_code=True" in path.read_text() and "generated_from_trainer" in path.read_text()


def test_a_cross_encoder_starts_from_a_student(bert, texts, tmp_path):
    senses = build_sense_dictionary(bert, texts, budget=90)
    SKDStudentModel.from_teacher(bert, senses).save_pretrained(tmp_path / "student")
    model = sentence_transformers.CrossEncoder(str(tmp_path / "student"), num_labels=1, device="cpu")
    pairs = [(texts[0], texts[1]), (texts[2], texts[3])]
    model.save_pretrained(str(tmp_path / "reranker"))
    again = sentence_transformers.CrossEncoder(str(tmp_path / "reranker"), device="cpu")
    assert again.predict(pairs) == pytest.approx(model.predict(pairs), abs=1e-5)


def test_a_dense_layer_needs_its_weights(tmp_path, teacher_folder, texts):
    pooling, folder = teacher_folder / "1_Pooling", teacher_folder / "2_Dense"
    pooling.mkdir()
    (pooling / "config.json").write_text('{"pooling_mode": "mean"}')
    folder.mkdir()
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")]
    content = [
        {"idx": 0, "name": "0", "path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in kinds
    ]
    (teacher_folder / "modules.json").write_text(json.dumps(content))
    settings = {"in_features": 16, "out_features": 8, "activation_function": "torch.nn.modules.activation.Tanh"}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="has no 2_Dense/model.safetensors"):
        load_teacher(teacher_folder)
    (folder / "config.json").write_text(json.dumps({**settings, "activation_function": "my.Own"}))
    with pytest.raises(ValueError, match="unknown activation 'Own'"):
        load_teacher(teacher_folder)
