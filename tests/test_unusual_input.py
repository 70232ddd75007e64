"""Texts and models that are not as usual."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import SIZES
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoTokenizer,
    BartConfig,
    BartModel,
    BrosConfig,
    BrosModel,
    CanineConfig,
    CanineModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
)

from sensedict_hf import (
    Prompt,
    SenseIndex,
    SKDStudentConfig,
    SKDStudentModel,
    attach_senses,
    build_sense_dictionary,
    load_senses,
    load_teacher,
)
from sensedict_hf.data import iterate_texts, read_dataset
from sensedict_hf.models.prompts import check_texts
from sensedict_hf.models.tokenization import model_max_length


@pytest.mark.parametrize("text", ["half \ud83d of it", "\udcff", ["read", "w \ud83d"]])
def test_a_lone_surrogate_is_refused_by_the_number_of_its_text(text):
    with pytest.raises(ValueError, match="text 1 .*lone surrogate"):
        check_texts(["right \U0001f600", text])
    if isinstance(text, str):
        with pytest.raises(ValueError, match="text 1 .*lone surrogate"):
            list(iterate_texts(["right", text]))


@pytest.mark.parametrize("number", [-1, 0, None])
def test_a_limit_that_is_no_number_of_tokens_does_not_count(number):
    class Limits:
        model_max_length = 64
        max_position_embeddings = number

    assert model_max_length(Limits(), Limits()) == 64


def test_models_that_read_no_token_ids_are_refused(tokenizer):
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    wrong = {
        "ViTModel has no vector for each token id": ViTModel(ViTConfig(**sizes, image_size=8, patch_size=4)),
        "CanineModel has no vector for each token id": CanineModel(CanineConfig(**sizes)),
        "BrosModel does not run on token ids": BrosModel(BrosConfig(**sizes, vocab_size=32)),
    }
    for message, model in wrong.items():
        with pytest.raises(ValueError, match=message):
            load_teacher(model.eval(), tokenizer=tokenizer)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_encoder_of_an_encoder_decoder_is_a_teacher(tokenizer, texts, kind):
    whole = T5Model(T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2))
    if kind == "bart":
        sizes = dict(encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2)
        whole = BartModel(BartConfig(vocab_size=32, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, **sizes))
    with pytest.raises(ValueError, match=r"pass its encoder, model.get_encoder\(\)"):
        load_teacher(whole.eval(), tokenizer=tokenizer)
    teacher = load_teacher(whole.get_encoder(), tokenizer=tokenizer)
    senses = build_sense_dictionary(teacher, texts, budget=60)
    before = teacher.encode(texts[:3])
    with attach_senses(teacher.model, senses):
        assert not torch.equal(teacher.encode(texts[:3]), before)
    with pytest.raises(ValueError, match="is the encoder of an encoder-decoder"):
        SKDStudentModel.from_teacher(teacher, senses)
    assert SKDStudentModel.from_teacher(teacher, senses, 0).encode(texts[:3]).shape == (3, 16)


@pytest.mark.parametrize("kind", ["esm", "layoutlm", "squeezebert", "big_bird", "ibert"])
def test_heads_next_to_the_layers_are_left_out_of_a_student(tokenizer, texts, tmp_path, kind):
    own = {"squeezebert": {"embedding_size": 16}, "big_bird": {"attention_type": "original_full"}}
    config = CONFIG_MAPPING[kind](**SIZES, max_position_embeddings=64, pad_token_id=0, **own.get(kind, {}))
    teacher = load_teacher(AutoModel.from_config(config).eval(), tokenizer=tokenizer)
    student = SKDStudentModel.from_teacher(teacher, build_sense_dictionary(teacher, texts, budget=60), 2)
    assert not any("pooler" in name or "contact_head" in name for name in student.state_dict())
    student.save_pretrained(tmp_path)
    torch.testing.assert_close(AutoModel.from_pretrained(tmp_path).encode(texts), student.encode(texts))


@pytest.mark.parametrize("name", ["./no/such", "/no/such", "a/b/c", "~/model", ""])
def test_a_folder_that_is_not_there_is_named(name):
    for load in (load_teacher, load_senses, SKDStudentModel.from_pretrained):
        with pytest.raises(ValueError, match=f"there is no folder {name} here"):
            load(name)


@pytest.mark.parametrize("wrong", [None, 5, 2.5, True])
def test_python_arguments_of_a_wrong_type_are_named(bert, texts, wrong):
    senses = build_sense_dictionary(bert, texts, budget=60)
    for call in (bert.encode, bert.encode_words, lambda given: build_sense_dictionary(bert, given, budget=60)):
        with pytest.raises(ValueError, match=type(wrong).__name__):
            call(wrong)
    wrong_calls = {
        "senses is": lambda: SKDStudentModel.from_teacher(bert, wrong),
        "senses is .*load_senses": lambda: attach_senses(bert.model, wrong),
        "model is": lambda: attach_senses(wrong, senses),
        "not the name of a dataset": lambda: read_dataset(wrong),
        "give a folder": lambda: load_senses(wrong),
        "template=": lambda: Prompt(wrong),
        "prompts=": lambda: SKDStudentConfig(prompts=wrong or [None]),
    }
    if wrong is not None:
        wrong_calls["tokenizer is"] = lambda: load_teacher(bert.model, tokenizer=wrong)
    if not isinstance(wrong, int) or wrong is True:
        wrong_calls["batch_size="] = lambda: bert.encode(texts, batch_size=wrong)
        wrong_calls["num_hidden_layers="] = lambda: SKDStudentModel.from_teacher(bert, senses, wrong)
        wrong_calls["token="] = lambda: senses.senses_of(wrong)
        wrong_calls["max_seq_length="] = lambda: SKDStudentConfig(max_seq_length=wrong)
    for message, call in wrong_calls.items():
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("layers", [None, 1, 0], ids=["teacher", "student", "layer-free student"])
def test_the_default_device_and_dtype_of_torch_do_not_matter(bert, texts, layers):
    senses = build_sense_dictionary(bert, texts, budget=60)
    model = bert if layers is None else SKDStudentModel.from_teacher(bert, senses, layers)
    expected = model.encode(texts)
    long = None if layers == 0 else model.encode(["w1 " * 100], long_texts="windows")
    try:
        torch.set_default_device("meta")
        torch.set_default_dtype(torch.float64)
        assert torch.equal(model.encode(texts), expected)
        torch.set_default_device("cpu")
        assert torch.equal(build_sense_dictionary(bert, texts, budget=60).table, senses.table)
        if layers != 0:
            assert torch.equal(model.encode(["w1 " * 100], long_texts="windows"), long)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device("cpu")


def test_vectors_that_are_not_finite_are_refused(bert, texts):
    """As of a model that overflows in half precision. Words are checked too."""
    with torch.no_grad():
        bert.model.embeddings.word_embeddings.weight[bert.tokenizer.convert_tokens_to_ids("w3")] = float("nan")
    assert bert.encode(["w1", "w2"]).isfinite().all()
    with pytest.raises(ValueError, match="NaN or infinite values for text 1: load it in another dtype"):
        bert.encode(["w1", "w3"])
    with pytest.raises(ValueError, match="NaN or infinite values for sentence 1"):
        bert.encode_words([["w1"], ["w2", "w3"]])


def test_a_tokenizer_that_panics(bert, tmp_path):
    """The code in Rust raises what is no Exception."""
    bert.tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["post_processor"]["special_tokens"] = {}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError):  # noqa: PT011  # other versions refuse to load it
        replace(bert, tokenizer=AutoTokenizer.from_pretrained(tmp_path)).encode(["w1"])


def test_ids_of_documents(bert, texts, tmp_path):
    senses = build_sense_dictionary(bert, texts, budget=60)
    pairs = ((np.array([5, 6]), [5, 6]), (np.array(["a", "b"]), ["a", "b"]), (["", "\0é"], ["", "\0é"]))
    for number, (given, ids) in enumerate(pairs):
        SenseIndex.build(bert, senses, texts[:2], ids=given).save(tmp_path / str(number))
        assert SenseIndex.load(tmp_path / str(number), model=bert).ids == ids
    for wrong in ([2**70, 1], ["\ud800", "b"], [1.0, 2.0], [True, 2], [None, 1], ["a", 1]):
        with pytest.raises(ValueError, match="id "):
            SenseIndex.build(bert, senses, texts[:2], ids=wrong)


def test_an_index_finds_its_model_from_another_folder(teacher_folder, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher = load_teacher("teacher")
    SenseIndex.build(teacher, build_sense_dictionary(teacher, texts, budget=60), texts[:3]).save("index")
    index = SenseIndex.load("index")
    monkeypatch.chdir("/")
    assert index.search(texts[0], top_k=1)[0] == [0]


def test_integers_of_numpy_are_integers(bert, texts):
    senses = build_sense_dictionary(bert, texts, budget=60)
    for layers in (np.int64(2), np.array([0, 3])):
        assert SKDStudentModel.from_teacher(bert, senses, layers).config.teacher_layers == [0, 3]
    assert bert.encode(texts, batch_size=np.int64(4)).shape == (60, 16)
