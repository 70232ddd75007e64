"""The benchmark of decoders as teachers."""

import pytest
import torch

from benchmarks.decoders import POOLINGS, SENSES, of_words, pooling_factors
from benchmarks.distillation.tasks import sentences
from benchmarks.stored_states import StoredStates
from sensedict_hf import Teacher, build_sense_dictionary
from sensedict_hf.models.encoding import pool


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_factors_make_a_pooling_of_a_mean(pooling, side):
    torch.manual_seed(0)
    states, mask = torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.long)
    for row, padding in enumerate((0, 2, 4)):
        mask[row, : padding if side == "left" else 0] = 0
        mask[row, 5 - padding if side == "right" else 5 :] = 0
    factors = pooling_factors(mask, pooling)
    torch.testing.assert_close(pool(states * factors[..., None], mask), pool(states, mask, pooling))


@pytest.mark.parametrize("outputs", [POOLINGS, list(SENSES)])
def test_words_are_scored_by_an_output_that_is_not_pooled_otherwise(outputs):
    found = {of_words(output) for output in outputs}
    assert found == {output for output in outputs if not output.endswith(("weighted_mean", "last"))}


def test_sentences_are_cut_and_short_ones_left_out():
    first, last = "History is the study of the past, as it is told.", "It is a very old discipline, all agree today!"
    article = f"{first} Is it old? {last}\nToo short."
    assert sentences([article, article]) == [first, last]


def test_stored_states_are_those_of_the_teacher(teacher, texts, tmp_path, monkeypatch):
    stored = StoredStates(teacher, tmp_path)
    build_sense_dictionary(stored, texts, budget=60)
    stored.save()
    torch.testing.assert_close(stored.encode(texts), teacher.encode(texts), atol=1e-3, rtol=0)
    # Neither the same texts nor another process needs the model again.
    monkeypatch.setattr(Teacher, "hidden_states", None)
    again = StoredStates(teacher, tmp_path)
    for each in (stored, again):
        torch.testing.assert_close(each.encode(texts[::-1]), stored.encode(texts).flip(0))
    # Another model has states of its own.
    monkeypatch.undo()
    torch.nn.init.normal_(teacher.model.get_input_embeddings().weight)
    other = StoredStates(teacher, tmp_path)
    assert not other.states
    torch.testing.assert_close(other.encode(texts), teacher.encode(texts), atol=1e-3, rtol=1e-3)
