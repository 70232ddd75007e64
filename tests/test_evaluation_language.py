"""Perplexity of texts, and `sensedict evaluate --task language_modeling`."""

import json
import math

import pytest
from tiny_models import SIZES, WORDS, make_tokenizer
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from sensedict_cli import main
from sensedict_hf import (
    SKDStudentForCausalLM,
    attach_senses,
    build_sense_dictionary,
    evaluate_language_modeling,
    load_teacher,
)


@pytest.fixture
def model():
    sizes = SIZES | {"num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


def test_scores_are_those_of_one_text_at_a_time(model, tokenizer, texts):
    total = right = tokens = 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        logits = model(ids).logits[0, :-1].double().log_softmax(-1)
        total -= float(logits.gather(1, ids[0, 1:, None]).sum())
        right += int((logits.argmax(1) == ids[0, 1:]).sum())
        tokens += ids.shape[1] - 1
    model.train()  # it is scored in evaluation mode, and stays as it was
    for batch_size in (1, 7):
        scores = evaluate_language_modeling(model, [*texts, ""], tokenizer=tokenizer, batch_size=batch_size)
        assert scores["tokens"] == tokens + 1  # an empty text has two special tokens
    assert model.training
    scores = evaluate_language_modeling(model, texts, tokenizer=tokenizer)
    assert scores["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert scores["token_accuracy"] == pytest.approx(right / tokens)


@pytest.mark.parametrize("max_length", [8, 9, 16, 64])
def test_windows_count_each_token_once(model, tokenizer, max_length):
    lines = [" ".join(f"w{number % 28}" for number in range(size)) for size in (0, 1, 30, 55)]
    scores = evaluate_language_modeling(model, lines, tokenizer=tokenizer, max_length=max_length)
    assert scores["tokens"] == sum(len(tokenizer(line)["input_ids"]) - 1 for line in lines)


def test_attached_senses_are_scored_and_bad_input_is_refused(model, tokenizer, texts):
    senses = build_sense_dictionary(load_teacher(model, tokenizer=tokenizer), texts, senses_per_token=1, key="next")
    plain = evaluate_language_modeling(model, texts, tokenizer=tokenizer)
    with attach_senses(model, senses, assignment="hard"):
        replaced = evaluate_language_modeling(model, texts, tokenizer=tokenizer)
    assert replaced["perplexity"] != pytest.approx(plain["perplexity"], rel=1e-3)
    with pytest.raises(ValueError, match="no text has two tokens"):
        evaluate_language_modeling(model, [], tokenizer=tokenizer)
    for other, message in (
        (model.model, "LlamaModel has no language-model head"),
        (BertForMaskedLM(BertConfig(**SIZES)), "the attention of BertForMaskedLM is bidirectional"),
        (LlamaForCausalLM(LlamaConfig(**SIZES | {"vocab_size": 9})), "the tokenizer has 32 tokens, LlamaForCausalLM"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_language_modeling(other, texts, tokenizer=tokenizer)
    student = SKDStudentForCausalLM.from_teacher(model, 2, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="tokenizer"):
        evaluate_language_modeling(student, texts, tokenizer=make_tokenizer(words=WORDS[::-1]))
    with pytest.raises(ValueError, match="max_length=7: the model takes 8 to 64 tokens"):
        evaluate_language_modeling(model, texts, tokenizer=tokenizer, max_length=7)


def test_the_command(model, tokenizer, texts, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    senses = build_sense_dictionary(str(tmp_path / "model"), texts, senses_per_token=1, key="next")
    senses.save_pretrained(tmp_path / "senses")
    (tmp_path / "test.txt").write_text("\n".join(texts))
    command = [
        "evaluate",
        "--task",
        "language_modeling",
        "--model",
        tmp_path / "model",
        "--test",
        tmp_path / "test.txt",
    ]

    def run(*more):
        return main([str(argument) for argument in (*command, *more)])

    assert run("--output", tmp_path / "scores.json") == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    expected = evaluate_language_modeling(model, texts, tokenizer=tokenizer)
    assert scores["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-5)
    assert f"| {expected['perplexity']:.2f} |" in capsys.readouterr().out
    assert run("--senses", tmp_path / "senses", "--assignment", "hard") == 0
    assert "hard, key next" in capsys.readouterr().out
    for more in (["--train", tmp_path / "test.txt"], ["--bidirectional", "true"], ["--assignment", "hard"]):
        assert run(*more) == 2
