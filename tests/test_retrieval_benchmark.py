"""The baselines of the benchmark of searching."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks.retrieval import baselines
from benchmarks.retrieval.vectors import TokenVectors, fit_dictionary, index_documents
from sensedict_hf import build_sense_dictionary
from sensedict_hf.retrieval.searching import Searcher
from sensedict_hf.retrieval.token_vectors import TokenEncoder


def token_vectors(sizes, generator):
    offsets = np.append(0, np.cumsum(sizes))
    vectors = generator.normal(size=(offsets[-1], 8)).astype(np.float16)
    return TokenVectors(generator.integers(0, 9, offsets[-1]), vectors, offsets)


@pytest.fixture
def sides():
    generator = np.random.default_rng(0)
    return token_vectors([2, 5, 1], generator), token_vectors(generator.integers(1, 9, 30), generator)


@pytest.mark.parametrize("block", [1, 20, 4096])
def test_late_interaction(sides, monkeypatch, block):
    monkeypatch.setattr(baselines, "BLOCK", block)
    queries, documents = sides
    split = [side.unit().split(np.diff(side.offsets).tolist()) for side in sides]
    expected = [[float((query @ document.T).amax(1).sum()) for document in split[1]] for query in split[0]]
    found = baselines.late_interaction(queries, documents.unit(), documents.offsets)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_more_bits_keep_more(sides):
    vectors = sides[1].unit()
    centre = F.normalize(vectors.mean(0, keepdim=True), dim=-1)
    clusters = centre, torch.zeros(len(vectors), dtype=torch.int64)
    errors = [float((baselines.residual_codes(vectors, bits, clusters) - vectors).norm()) for bits in (1, 2, 4)]
    assert errors[0] > errors[1] > errors[2]
    assert float((baselines.int8_vectors(vectors) - vectors).abs().max()) < 0.01


def test_a_fitted_dictionary_finds_its_documents(bert, texts, tmp_path):
    like = build_sense_dictionary(bert, texts[:1])
    documents = TokenVectors.of(TokenEncoder(bert, like), texts, tmp_path / "documents.npz")
    # A second call reads the file.
    again = TokenVectors.of(None, texts, tmp_path / "documents.npz")
    assert (again.vectors == documents.vectors).all()
    senses = fit_dictionary(documents, like, None)
    table, rows = index_documents(documents, senses)
    assert len(table) == senses.config.num_senses  # no token lacks senses
    found = [best[0] for best, _ in Searcher(table, rows).search(documents.of_each_text(), 1)]
    assert np.mean(np.array(found) == np.arange(len(texts))) > 0.9
    # With another dictionary, other tokens get rows of their own.
    assert len(index_documents(documents, like)[0]) > like.config.num_senses
