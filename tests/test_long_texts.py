"""Texts that are longer than the model reads: what is left out is said, and windows read all of it."""

import logging
from dataclasses import replace

import pytest
import torch
from tiny_models import WORDS, build_once
from transformers import ByT5Tokenizer
from transformers.utils.logging import disable_progress_bar

from sensedict_hf import SKDStudentModel
from sensedict_hf.models.encoding import logger
from sensedict_hf.models.prompts import Prompt

disable_progress_bar()
LONG, SHORT = " ".join(WORDS), "w1 w2 w3"


@pytest.fixture
def warnings(caplog):
    """The warnings of `encode`."""
    logger.warning_once.cache_clear()
    logging.getLogger("sensedict_hf").propagate = True
    with caplog.at_level("WARNING", logger="sensedict_hf"):
        yield caplog


@pytest.fixture(params=[None, Prompt("w4 {text}"), Prompt(instruction="w4", pooled="all"), "layer-free"])
def encoder(request, bert, texts):
    bert.max_seq_length = 12
    if request.param == "layer-free":
        return SKDStudentModel.from_teacher(bert, build_once(bert, texts, budget=90), 0)
    bert.prompt = request.param
    return bert


def test_a_warning_says_how_many_are_cut(encoder, warnings):
    encoder.encode([SHORT, "w1 " * 7])
    assert not warnings.records
    for _ in range(2):
        encoder.encode([SHORT, LONG, LONG])
    (record,) = warnings.records
    assert "2 of 3 texts are longer than 12 tokens" in record.getMessage()


def test_windows_read_all_of_a_text(bert, warnings):
    bert.max_seq_length = 12
    vectors = bert.encode([SHORT, LONG], long_texts="windows")
    assert not warnings.records
    # Short texts are what they were; of a long one each token counts once, with its context.
    torch.testing.assert_close(vectors[0], bert.encode(SHORT))
    rows = Prompt().windows(bert.tokenizer, LONG, 12)
    assert len(rows) > 2 and all(len(row.input_ids) <= 12 for row in rows)
    owned = [bert.tokenizer.decode(row.input_ids[row.begin : row.end]) for row in rows]
    assert " ".join(owned) == LONG
    states = [bert.last_hidden_state(torch.tensor([row.input_ids]))[0, row.begin : row.end] for row in rows]
    torch.testing.assert_close(vectors[1], torch.cat(states).mean(0), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(vectors[1], bert.encode(LONG))


def test_windows_have_the_prompt_around_them(bert):
    bert.max_seq_length, bert.prompt = 12, Prompt("w4 {text} w5")
    for text in (LONG, ("w6", LONG)):
        rows = bert.prompt.windows(bert.tokenizer, text, 12)
        assert {bert.tokenizer.decode(row.input_ids[:2]) for row in rows} == {"[CLS] w4"}
        assert {bert.tokenizer.decode(row.input_ids[-2:]) for row in rows} == {"w5 [SEP]"}
        assert torch.isfinite(bert.encode([text], long_texts="windows")).all()
    with pytest.raises(ValueError, match="leaves . tokens for a text"):
        bert.prompt.windows(bert.tokenizer, LONG, 7)


def test_wrong_choices_are_refused(encoder):
    with pytest.raises(ValueError, match="long_texts.'middle'"):
        encoder.encode(["w1"], long_texts="middle")
    if isinstance(encoder, SKDStudentModel):
        with pytest.raises(ValueError, match="reads texts of any length"):
            encoder.encode(["w1"], long_texts="windows")


def test_texts_that_the_prompt_shortens_are_read_in_windows_too(bert):
    """Of LLM2Vec's teachers the prompt has a limit of its own, below that of the model."""
    text = " ".join(WORDS[place % len(WORDS)] for place in range(100))
    teacher = replace(bert, prompt=Prompt(max_text_length=20))
    row, short = teacher.prompt.tokenize(teacher.tokenizer, [text, "w1 w2"], 64)
    assert row.is_cut and not short.is_cut
    assert not torch.allclose(teacher.encode(text), teacher.encode(text, long_texts="windows"))


def test_a_slow_tokenizer_tells_what_it_cuts(bert):
    tokenizer = ByT5Tokenizer(model_max_length=64)
    row, short = Prompt(pooled="all").tokenize(tokenizer, ["w" * 100, "w1"], 64)
    assert row.is_cut and len(row.input_ids) == 64 and not short.is_cut
