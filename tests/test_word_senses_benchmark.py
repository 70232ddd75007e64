"""The benchmark of word senses."""

import json

import numpy as np
import pytest
import torch

from benchmarks.retrieval.vectors import TokenVectors
from benchmarks.word_senses import Examples, most_frequent, read_examples, score_senses, score_vectors
from sensedict_hf import build_sense_dictionary


def test_a_word_has_the_state_of_its_last_token_and_the_one_before_it(bert, tmp_path):
    rows = [("w3 w4 w5", 3, 5), ("w6 w7", 0, 2)]
    lines = [json.dumps({"text": text, "start": a, "end": b, "word": "w", "sense": "s"}) for text, a, b in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    found = read_examples(bert, tmp_path / "rows.jsonl", tmp_path / "vectors.npy")
    for number, (text, place) in enumerate(zip((rows[0][0], rows[1][0]), (2, 1))):  # after [CLS]
        ids = torch.tensor([bert.tokenizer(text)["input_ids"]])
        states = bert.last_hidden_state(ids)[0]
        for key, own in (("input", place), ("next", place - 1)):
            assert found[key].tokens[number] == ids[0, place]
            torch.testing.assert_close(found[key].vectors[number], states[own], rtol=1e-4, atol=1e-5)


def test_states_that_predict_belong_to_the_next_token():
    vectors = np.arange(5, dtype=np.float16)[:, None]
    found = TokenVectors(np.array([10, 11, 12, 20, 30]), vectors, np.array([0, 3, 3, 5])).predicting()
    assert found.tokens.tolist() == [11, 12, 30]
    assert found.vectors.ravel().tolist() == [0, 1, 3]
    assert found.offsets.tolist() == [0, 2, 2, 3]


def test_scores(bert, texts):
    """Two meanings of one token that lie apart are told apart by two senses, and by none if there is one."""
    senses = {count: build_sense_dictionary(bert, texts, senses_per_token=count) for count in (1, 2)}
    token = int(senses[2].offsets.diff().argmax())
    begin = int(senses[2].offsets[token])
    table = senses[2].dequantized()[begin : begin + 2].float()
    order = [0, 1, 1, 0, 1]
    words, meanings = np.array(["bank"] * 5), np.array(["river", "money"])[order]
    examples = Examples(words, meanings, torch.full((5,), token), table[order])
    two, one = (score_senses(senses[count], examples, examples) for count in (2, 1))
    assert (two["accuracy"], two["v_measure"]) == (1, 1)
    assert one["accuracy"] == pytest.approx(0.6) and one["v_measure"] == 0
    assert score_vectors(examples, examples)["accuracy"] == 1
    assert most_frequent(["a", "a", "a", "b"], np.array(["x", "y", "y", "x"])) == {"a": "y", "b": "x"}
