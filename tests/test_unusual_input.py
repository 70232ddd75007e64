"""Texts, files and terminals that are not as usual."""

import pytest

from sensedict_hf.data import iterate_texts
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
