"""Finding the best documents of an index: rough scores leave a few documents over, which are scored exactly."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .document_rows import DocumentRows, best_documents
from .inverted_lists import InvertedLists

# Up to so many documents all get rough scores; with more, inverted lists are faster.
SCANNED = 4_000
# Documents that get rough scores first, and others only if the bound of their score asks for it.
CANDIDATES = 500


class Searcher:
    """Documents and the table of their rows, ready to be searched.

    Most of the time goes into the product of query and table. So it is made in bfloat16 where the CPU multiplies such
    numbers, which is more than twice as fast. These cosines are rough, but their error has a bound. Documents that
    can be among the best by it are scored again in float32. So the result is exact.

    Args:
        table: The rows, `[rows, hidden]`, float32.
        documents: The documents.
        dtype: Dtype of the first product, float32 or bfloat16. Default: bfloat16 if the CPU has instructions for it.
    """

    def __init__(self, table: Tensor, documents: DocumentRows, dtype: torch.dtype | None = None) -> None:
        self.documents = documents
        self._units = F.normalize(table, dim=-1)
        self._rough_units = self._units.to(dtype or fast_dtype())  # the same tensor if it is float32
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

    def rough_cosines(self, vectors: Tensor) -> Tensor:
        """Return the same from the first product, float32."""
        return (F.normalize(vectors, dim=-1).to(self._rough_units.dtype) @ self._rough_units.T).float()

    def search(self, queries: Sequence[Tensor], top_k: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield the numbers and the scores of the best documents of each query, best first.

        Args:
            queries: The vectors of the tokens of each query, `[tokens, hidden]`.
            top_k: How many, at most `documents`.
        """
        # One product for several queries is faster than one for each.
        rough = self.rough_cosines(torch.cat(list(queries)))
        for vectors, cosines in zip(queries, rough.split([len(vectors) for vectors in queries])):
            if len(self.documents) <= max(SCANNED, 4 * top_k):
                numbers = np.arange(len(self.documents))
                scores = self.documents.scores(by_row(cosines))
            else:
                numbers, scores = self._look_up(cosines, top_k)
            yield self._rank(vectors, numbers, scores, top_k)

    def _error(self, num_tokens: int) -> float:
        """Return a bound of the difference between a rough score and an exact one."""
        # Rounding a number to bfloat16 changes it by a factor of at most 1 + 2^-8. For vectors of length 1 that makes
        # 2^-7 for the product, and 2^-8 for its own rounding. Sums in float32 are rounded too.
        one = 0.012 if self._rough_units.dtype == torch.bfloat16 else 0.0
        return one * num_tokens + 1e-6 * num_tokens**2

    def _look_up(self, cosines: Tensor, top_k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return documents with all that can be among the best, and their rough scores.

        Args:
            cosines: The rough cosines of a query, `[tokens, rows]`.
            top_k: How many documents are the best.
        """
        if self._lists is None:
            self._lists = InvertedLists(self.documents, len(self._units))
        bounds, common = self._lists.bounds(cosines)
        values = by_row(cosines)

        # Score the documents with the largest bounds. No document below the k-th best of them can be among the best.
        first = torch.from_numpy(bounds).topk(max(CANDIDATES, 2 * top_k)).indices.sort().values.numpy()
        scores = self.documents.take(first).scores(values)
        least = np.partition(scores, -top_k)[-top_k]

        # Score all others whose bound is not below it.
        is_possible = bounds >= least - 2 * self._error(len(cosines)) - common
        is_possible[first] = False
        others = np.flatnonzero(is_possible)
        if not len(others):
            return first, scores
        numbers = np.append(first, others)
        order = numbers.argsort()
        return numbers[order], np.append(scores, self.documents.take(others).scores(values))[order]

    def _rank(
        self, vectors: Tensor, numbers: NDArray[np.int64], scores: NDArray[np.float32], top_k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the best documents by exact scores.

        Args:
            vectors: The vectors of a query, `[tokens, hidden]`.
            numbers: Numbers of documents, ascending, `[n]`.
            scores: Their rough scores, `[n]`.
            top_k: How many documents are the best.
        """
        least = np.partition(scores, -top_k)[-top_k]
        numbers = numbers[scores >= least - 2 * self._error(len(vectors))]
        documents = self.documents.take(numbers)

        # Only the rows of these documents are needed.
        is_used = np.zeros(len(self._units), dtype=bool)
        is_used[documents.rows] = True
        used = DocumentRows((np.cumsum(is_used) - 1)[documents.rows], documents.offsets)
        cosines = F.normalize(vectors, dim=-1) @ self._units[torch.from_numpy(np.flatnonzero(is_used))].T
        exact = used.scores(by_row(cosines))
        best = best_documents(exact, top_k)
        return numbers[best], exact[best]


def fast_dtype() -> torch.dtype:
    """Return bfloat16 if the CPU multiplies such numbers faster than float32, else float32."""
    # Earlier versions of torch do not tell.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    has_products = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if has_products else torch.float32


def by_row(cosines: Tensor) -> NDArray[np.float32]:
    """Return the cosines of the rows, `[rows, tokens]`, from `[tokens, rows]`."""
    transposed: NDArray[np.float32] = cosines.T.contiguous().numpy()
    return transposed
