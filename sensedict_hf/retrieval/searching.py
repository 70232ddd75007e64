"""Finding the best documents of an index: all are scored, or those that inverted lists leave over."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .document_rows import DocumentRows, best_documents
from .inverted_lists import InvertedLists

# Up to so many documents all are scored; with more, inverted lists are faster.
SCANNED = 4_000
# Documents that are scored first, and others only if the bound of their score asks for it.
CANDIDATES = 500


class Searcher:
    """Documents and the table of their rows, ready to be searched.

    Args:
        table: The rows, `[rows, hidden]`, float32.
        documents: The documents.
    """

    def __init__(self, table: Tensor, documents: DocumentRows) -> None:
        self.documents = documents
        self._units = F.normalize(table, dim=-1)
        self._lists: InvertedLists | None = None  # made when they are needed

    @property
    def lists_nbytes(self) -> int:
        """Size of the inverted lists in bytes; 0 as long as they are not made."""
        return 0 if self._lists is None else self._lists.nbytes

    def cosines(self, vectors: Tensor) -> Tensor:
        """Return the cosine of each vector of a query with each row, `[tokens, rows]`.

        Args:
            vectors: `[tokens, hidden]`, float32.
        """
        return F.normalize(vectors, dim=-1) @ self._units.T

    def search(self, queries: Sequence[Tensor], top_k: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield the numbers and the scores of the best documents of each query, best first.

        Args:
            queries: The vectors of the tokens of each query, `[tokens, hidden]`.
            top_k: How many, at most `documents`.
        """
        # One product for several queries is faster than one for each.
        cosines = self.cosines(torch.cat(list(queries)))
        for part in cosines.split([len(vectors) for vectors in queries]):
            if len(self.documents) <= max(SCANNED, 4 * top_k):
                scores = self.documents.scores(by_row(part))
                best = best_documents(scores, top_k)
                yield best, scores[best]
            else:
                yield self._search_lists(part, top_k)

    def _search_lists(self, cosines: Tensor, top_k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the best documents for the cosines of a query, `[tokens, rows]`, as if all had been scored."""
        if self._lists is None:
            self._lists = InvertedLists(self.documents, len(self._units))
        bounds, common = self._lists.bounds(cosines)
        values = by_row(cosines)

        # Score the documents with the largest bounds. No document below the k-th best of them can be among the best.
        first = torch.from_numpy(bounds).topk(max(CANDIDATES, 2 * top_k)).indices.sort().values.numpy()
        scores = self.documents.take(first).scores(values)
        least = np.partition(scores, -top_k)[-top_k]

        # Score all others whose bound is not below it. Sums in float32 are rounded, so a margin is left.
        margin = 1e-6 * len(cosines) ** 2
        is_possible = bounds >= least - margin - common
        is_possible[first] = False
        if is_possible.any():
            others = np.flatnonzero(is_possible)
            numbers = np.append(first, others)
            order = numbers.argsort()
            first = numbers[order]
            scores = np.append(scores, self.documents.take(others).scores(values))[order]
        best = best_documents(scores, top_k)
        return first[best], scores[best]


def by_row(cosines: Tensor) -> NDArray[np.float32]:
    """Return the cosines of the rows, `[rows, tokens]`, from `[tokens, rows]`."""
    transposed: NDArray[np.float32] = cosines.T.contiguous().numpy()
    return transposed
