"""Other ways to search: single vectors, late interaction with all vectors, and with vectors that are coded."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .vectors import TokenVectors

Ranking = NDArray[np.int64]
DEPTH = 100  # documents of a ranking
BLOCK = 4096  # tokens of documents that are compared at a time


def ranking(scores: Tensor) -> Ranking:
    """Return the best documents of each query, best first, from scores `[queries, documents]`."""
    return scores.topk(min(DEPTH, scores.shape[1])).indices.numpy()


def bm25(queries: list[str], documents: list[str]) -> Ranking:
    """Rank by BM25 with the defaults of `bm25s` and its English stop words."""
    import bm25s

    engine = bm25s.BM25()
    engine.index(bm25s.tokenize(documents, stopwords="en", show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(queries, stopwords="en", show_progress=False)
    found = engine.retrieve(tokens, k=min(DEPTH, len(documents)), show_progress=False)
    return np.asarray(found[0], dtype=np.int64)


def int8_vectors(documents: Tensor) -> Tensor:
    """Return vectors as they are after 8 bits a number, with the range of each dimension in 255 steps."""
    low, high = documents.amin(0), documents.amax(0)
    step = (high - low) / 255
    return ((documents - low) / step).round() * step + low


def binary_with_rescoring(queries: Tensor, documents: Tensor) -> Ranking:
    """Rank by the signs of the numbers, and the four times as many best by the query's vector and the signs."""
    signs = documents.sign()
    coarse = queries.sign() @ signs.T
    best = coarse.topk(min(4 * DEPTH, len(documents))).indices
    again = torch.full_like(coarse, -torch.inf).scatter(1, best, (queries @ signs.T).gather(1, best))
    return ranking(again)


def largest_cosines(queries: TokenVectors, vectors: Tensor, offsets: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the largest cosine of each document with each token of the queries, `[documents, tokens]`.

    Args:
        queries: The queries.
        vectors: The vectors of the documents' tokens, with length 1, `[tokens, hidden]`.
        offsets: Where the tokens of each document begin, `[documents + 1]`.
    """
    query_vectors, columns, first = queries.unit(), [], 0
    while first < len(offsets) - 1:
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + BLOCK, side="right")) - 1)
        cosines = (vectors[offsets[first] : offsets[last]] @ query_vectors.T).numpy()
        columns.append(np.maximum.reduceat(cosines, offsets[first:last] - offsets[first], axis=0))
        first = last
    return np.concatenate(columns)


def late_interaction(queries: TokenVectors, vectors: Tensor, offsets: NDArray[np.int64]) -> Tensor:
    """Return the sum over query tokens of the largest cosine with a document token, `[queries, documents]`.

    The arguments are those of :func:`largest_cosines`.
    """
    cosines = largest_cosines(queries, vectors, offsets)
    return torch.from_numpy(np.add.reduceat(cosines, queries.offsets[:-1], axis=1).T.copy())


def kmeans(vectors: Tensor, clusters: int, rounds: int) -> tuple[Tensor, Tensor]:
    """Return the centres of k-means over all vectors, and the centre of each vector."""
    import faiss

    faiss.omp_set_num_threads(1)
    engine = faiss.Kmeans(
        vectors.shape[1], clusters, niter=rounds, seed=0, min_points_per_centroid=1, max_points_per_centroid=256
    )
    engine.train(vectors.numpy())
    return torch.from_numpy(engine.centroids), torch.from_numpy(engine.index.search(vectors.numpy(), 1)[1][:, 0])


def residual_codes(vectors: Tensor, bits: int, clusters: tuple[Tensor, Tensor]) -> Tensor:
    """Return vectors as ColBERTv2's codes keep them: a centre, and the residual with some bits a number.

    Santhanam et al., "ColBERTv2", NAACL 2022: the numbers of all residuals are cut at quantiles, and a part is
    represented by the quantile in its middle.

    Args:
        vectors: `[tokens, hidden]`, with length 1.
        bits: Bits a number.
        clusters: The centres, and the centre of each vector.
    """
    near = clusters[0][clusters[1]]
    residuals = vectors - near
    sample = residuals.flatten()[:: max(1, residuals.numel() // 1_000_000)]
    cuts = torch.quantile(sample, torch.arange(1, 2**bits) / 2**bits)
    values = torch.quantile(sample, (torch.arange(2**bits) + 0.5) / 2**bits)
    return F.normalize(near + values[torch.bucketize(residuals, cuts)], dim=-1)


def partitions(tokens: int) -> int:
    """Return ColBERTv2's number of centres: the power of two below 16 times the root of the number of tokens."""
    return int(2 ** np.floor(np.log2(16 * np.sqrt(tokens))))


def available(function: Callable[[], object]) -> bool:
    """Return whether the package that a baseline imports is installed; say so if it is not."""
    try:
        function()
    except ImportError as error:
        print(f"left out: {error.name} is not installed", flush=True)
        return False
    return True
