"""What sentence-transformers and this package read in each other's folders is the same."""

import json

import numpy as np
import pytest
import torch
from tiny_models import WORDS, make_model, make_tokenizer
from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2Model, pipeline

from sensedict_hf import SKDStudentModel, Teacher, build_sense_dictionary, load_teacher
from sensedict_hf.models.prompts import Prompt
from sensedict_hf.models.sentence_files import write_sentence_transformers

SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
TEXTS = ["w5 w6 w7", "w9", " ".join(WORDS)]


def in_sentence_transformers(folder, **settings):
    return SentenceTransformer(str(folder), device="cpu", **settings)


def vectors(model, texts=TEXTS):
    return np.asarray(model.encode(texts))


def make_student(teacher, texts, folder, **config):
    senses = build_sense_dictionary(teacher, texts, budget=60)
    student = SKDStudentModel.from_teacher(teacher, senses, **config)
    student.save_pretrained(folder)
    return student


@pytest.fixture
def saved(teacher_folder):
    """A teacher of sentence-transformers."""
    write_sentence_transformers(teacher_folder, 16, "mean", 64)
    return teacher_folder


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt("w1 w2 {text}"),
        Prompt("w1 w2 {text}", pooled="all"),
        Prompt(instruction="w1 w2"),
        Prompt("w1 {text}", instruction="w2 w3"),
    ],
)
@pytest.mark.parametrize("pooling", ["mean", "max", "last"])
def test_a_prompt_before_the_text_is_read_there_too(bert, texts, tmp_path, prompt, pooling):
    bert.prompt = prompt
    student = make_student(bert, texts, tmp_path, pooling=pooling, max_seq_length=16)
    model = in_sentence_transformers(tmp_path)
    for encode in (model.encode, model.encode_query, model.encode_document):
        np.testing.assert_allclose(encode(TEXTS), vectors(student), atol=1e-5)
    assert f"| prompt: template | '{prompt.template}' |" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    "prompt, pooling",
    [
        (Prompt("w1 {text} w2"), "mean"),
        (Prompt("w1 {text}", pooled="text_and_tail", max_text_length=8), "mean"),
        (Prompt(), "mean"),  # pools the text without the special token before it
        (Prompt("w1 {text}"), "cls"),
        (Prompt("w1 {text}"), "weighted_mean"),
        (Prompt("w1-{text}"), "mean"),
    ],
)
def test_a_prompt_that_it_has_no_form_for_makes_it_fail(bert, texts, tmp_path, prompt, pooling):
    from tokenizers.pre_tokenizers import WhitespaceSplit

    bert.tokenizer.backend_tokenizer.pre_tokenizer = WhitespaceSplit()  # the last prompt ends inside a token
    bert.prompt = prompt
    make_student(bert, texts, tmp_path, pooling=pooling)
    with pytest.raises(Exception, match="only_its_own_encode_pools_right"):
        in_sentence_transformers(tmp_path)
    bert.prompt = None
    student = make_student(bert, texts, tmp_path, pooling=pooling)  # the same folder works again
    np.testing.assert_allclose(vectors(in_sentence_transformers(tmp_path)), vectors(student), atol=1e-5)


@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts_by_name_and_the_default_one_are_kept(saved, texts, tmp_path, include_prompt):
    prompts = {"query": "w1 w2 ", "document": "w3 ", "all": "w4 "}
    settings = {"prompts": prompts, "default_prompt_name": "all"}
    (saved / "config_sentence_transformers.json").write_text(json.dumps(settings))
    pooling = {"embedding_dimension": 16, "pooling_mode": "mean", "include_prompt": include_prompt}
    (saved / "1_Pooling/config.json").write_text(json.dumps(pooling))
    make_student(load_teacher(saved), texts, tmp_path / "out", num_hidden_layers=4, assignment="none")
    before, after = in_sentence_transformers(saved), in_sentence_transformers(tmp_path / "out")
    assert after.prompts == prompts and after.default_prompt_name == "all"
    for name in ("encode", "encode_query", "encode_document"):
        np.testing.assert_allclose(getattr(before, name)(TEXTS), getattr(after, name)(TEXTS), atol=1e-5)


def test_a_default_prompt_that_is_missing_is_named(saved):
    (saved / "config_sentence_transformers.json").write_text('{"prompts": {}, "default_prompt_name": "all"}')
    with pytest.raises(ValueError, match="no prompt 'all'"):
        load_teacher(saved)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "xlnet"])
def test_lower_case_and_length_are_read_under_the_names_of_older_versions(saved, texts, tmp_path, kind):
    tokenizer = make_tokenizer([*WORDS[:14], *(word.upper() for word in WORDS[:14])])
    tokenizer.save_pretrained(saved)
    (saved / "sentence_bert_config.json").unlink()
    (saved / f"sentence_{kind}_config.json").write_text('{"max_seq_length": 6, "do_lower_case": true}')
    teacher, upper = load_teacher(saved), [text.upper() for text in TEXTS]
    assert teacher.max_seq_length == 6
    np.testing.assert_allclose(vectors(teacher, upper), vectors(in_sentence_transformers(saved), upper), atol=1e-5)
    np.testing.assert_array_equal(vectors(teacher, upper), vectors(teacher))
    student = make_student(teacher, texts, tmp_path / "out")
    np.testing.assert_array_equal(vectors(student, upper), vectors(student))
    there = in_sentence_transformers(tmp_path / "out")
    np.testing.assert_allclose(vectors(there, upper), vectors(student), atol=1e-5)


@pytest.mark.parametrize(
    "file, content, named",
    [
        ("modules.json", [{"path": "", "type": "x.Transformer"}, {"path": "2", "type": "x.LSTM"}], "x.LSTM"),
        ("modules.json", [{"path": "", "type": "x.WordEmbeddings"}], "x.WordEmbeddings"),
        ("modules.json", [{"path": "0", "type": "x.Transformer"}], "its folder 0"),
        ("sentence_bert_config.json", {"tokenizer_args": {"truncation_side": "left"}}, "tokenizer_args"),
        ("sentence_bert_config.json", {"tokenizer_name_or_path": "other"}, "tokenizer_name_or_path"),
        ("1_Pooling/config.json", {}, "no 1_Pooling/config.json"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "max"]}, r"mean\+max"),
        ("1_Pooling/config.json", {"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
        ("1_Pooling/config.json", {"pooling_mode": "cls", "include_prompt": False}, "cls without the prompt"),
    ],
)
def test_what_is_not_supported_is_refused_by_name_unless_a_pooling_is_given(saved, file, content, named):
    (saved / "config_sentence_transformers.json").write_text('{"prompts": {"query": "w1 "}}')
    (saved / "0").mkdir()
    (saved / "0/config.json").write_text('{"model_type": "bert"}')
    (saved / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=named):
        load_teacher(saved)
    if "its folder" not in named:
        assert load_teacher(saved, pooling="mean").pooling == "mean"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("pad", [None, "[NEW]"])  # the model has no embedding for a token that was added
def test_a_decoder_without_padding_is_read_in_batches(texts, tmp_path, kind, pad):
    tokenizer = make_tokenizer(model_max_length=10**30)
    tokenizer.padding_side, tokenizer.eos_token = "left", "[SEP]"
    tokenizer._special_tokens_map["pad_token"] = None
    if pad:
        tokenizer.add_special_tokens({"pad_token": pad})
    sizes = {"vocab_size": 32, "n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 64}
    model = make_model("llama") if kind == "llama" else GPT2Model(GPT2Config(**sizes)).eval()
    teacher = Teacher(model, tokenizer, name="tiny", max_seq_length=64, max_window=64)
    student = make_student(teacher, texts, tmp_path)
    assert tokenizer.padding_side == "left" and tokenizer.pad_token == pad  # the caller's own stays as it was
    np.testing.assert_allclose(vectors(in_sentence_transformers(tmp_path)), vectors(student), atol=1e-5)
    batches = pipeline("feature-extraction", model=str(tmp_path))(TEXTS, batch_size=3)
    alone = student(**student.tokenizer(TEXTS[1], return_tensors="pt")).last_hidden_state[0]
    torch.testing.assert_close(torch.tensor(batches[1][0])[: len(alone)], alone, rtol=1e-4, atol=1e-5)
    kept = AutoTokenizer.from_pretrained(tmp_path)
    assert (kept.padding_side, kept.pad_token, kept.model_max_length) == ("right", "[SEP]", 64)


@pytest.mark.parametrize("layers", [2, 0])
def test_what_is_changed_there_is_taken_over_or_told(teacher_folder, texts, tmp_path, monkeypatch, layers):
    teacher = load_teacher(teacher_folder)
    make_student(teacher, texts, tmp_path / "student", num_hidden_layers=layers)
    model = in_sentence_transformers(tmp_path / "student")
    model.max_seq_length = 8
    model.save(str(tmp_path / "changed"))
    student = AutoModel.from_pretrained(tmp_path / "changed")
    assert student.config.max_seq_length == 8
    np.testing.assert_allclose(vectors(student), vectors(model), atol=1e-5)
    assert AutoModel.from_pretrained(tmp_path / "changed", max_seq_length=5).config.max_seq_length == 5
    shorter = in_sentence_transformers(tmp_path / "student", truncate_dim=8, similarity_fn_name="dot")
    shorter.save(str(tmp_path / "shorter"))
    again, student = (load(tmp_path / "shorter") for load in (in_sentence_transformers, AutoModel.from_pretrained))
    assert (again.truncate_dim, again.similarity_fn_name) == (8, "dot") == (8, student.config.similarity_fn_name)
    np.testing.assert_allclose(vectors(student), vectors(again), atol=1e-5)
    assert vectors(again).shape[1] == 8
    student.save_pretrained(tmp_path / "shorter")  # what the other library has left there is not kept
    assert "__version__" not in (tmp_path / "shorter" / "config_sentence_transformers.json").read_text()
    # What cannot be taken over.
    said = []
    monkeypatch.setattr("sensedict_hf.models.sentence_files.logger.warning", said.append)
    AutoModel.from_pretrained(tmp_path / "changed")
    assert not said
    file = tmp_path / "changed" / "config_sentence_transformers.json"
    file.write_text(json.dumps({"prompts": {"doc": "w1 "}, "default_prompt_name": "doc"}))
    if layers:
        (tmp_path / "changed" / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    AutoModel.from_pretrained(tmp_path / "changed")
    assert f"{'another pooling and ' * bool(layers)}other prompts" in said[0]


def test_a_prompt_that_is_not_pooled_needs_layers(teacher_folder, texts, tmp_path):
    make_student(load_teacher(teacher_folder, instruction="w1 w2"), texts, tmp_path / "student", num_hidden_layers=0)
    with pytest.raises((ValueError, ImportError), match="only_its_own_encode_pools_right"):
        in_sentence_transformers(tmp_path / "student")
