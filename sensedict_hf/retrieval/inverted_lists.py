"""The documents of each row, from which the few documents that can be among the best are found."""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from .document_rows import DocumentRows

# The lists keep the last 16 bits of the numbers of documents.
BLOCK = 1 << 16
# Rows that a token of a query looks up at most, and the share of all documents at which it stops.
ROWS, SHARE = 256, 0.1


class InvertedLists:
    """The documents that have each row of the table.

    A token of a query looks up its best rows, until their lists have a tenth of all documents. No other row has a
    larger cosine than the next one. So a token adds to the score of a document what was found for it, or that cosine
    at most (the threshold algorithm of Fagin, Lotem and Naor, "Optimal aggregation algorithms for middleware",
    PODS 2001).

    Args:
        documents: The documents.
        num_rows: Rows of the table.
    """

    def __init__(self, documents: DocumentRows, num_rows: int) -> None:
        size, offsets, rows = len(documents), documents.offsets, documents.rows
        index = np.int32 if len(rows) < 1 << 31 else np.int64
        ones = np.ones(len(rows), dtype=np.int8)
        by_document = sparse.csr_array((ones, rows.astype(index), offsets.astype(index)), shape=(size, num_rows))
        by_row = by_document.tocsc()
        self._size = size
        self._numbers: NDArray[np.uint16] = by_row.indices.astype(np.uint16)
        self._offsets: NDArray[np.int64] = by_row.indptr.astype(np.int64)
        # How many entries of each list are in each block of documents, `[rows, blocks]`.
        borders = offsets[np.append(np.arange(0, size, BLOCK), size)]
        sizes = [np.bincount(rows[begin:end], minlength=num_rows) for begin, end in zip(borders, borders[1:])]
        self._block_sizes = np.stack(sizes, axis=1).astype(np.int32)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self._numbers.nbytes + self._offsets.nbytes + self._block_sizes.nbytes

    def bounds(self, cosines: Tensor) -> tuple[NDArray[np.float32], float]:
        """Return upper bounds of the scores of all documents, in two summands.

        Args:
            cosines: The cosine of each token of the query with each row, `[query tokens, rows]`, float32.

        Returns:
            What differs between documents, `[documents]`, and what all have in common.
        """
        best = cosines.topk(min(ROWS, cosines.shape[1]), dim=1)
        total, found = (np.zeros(self._size, dtype=np.float32) for _ in range(2))
        common, most = 0.0, max(1, int(SHARE * self._size))
        sizes = np.diff(self._offsets)
        # A query has few tokens, and each of them many thousands of documents, which are handled together.
        for values, rows in zip(best.values.numpy(), best.indices.numpy()):
            count = int(np.searchsorted(np.cumsum(sizes[rows]), most, side="right"))
            least = values[min(count, len(rows) - 1)]
            common += float(least)
            if count:
                # Of several values for one document the last one stays, so the best row comes last.
                rows, values = rows[:count][::-1], values[:count][::-1] - least
                documents = self._documents(rows)
                found[documents] = np.repeat(values, sizes[rows])
                total += found
                found[documents] = 0
        return total, common

    def _documents(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the documents of some rows, one list after the other."""
        borders = zip(self._offsets[rows].tolist(), self._offsets[rows + 1].tolist())
        numbers = np.concatenate([self._numbers[begin:end] for begin, end in borders]).astype(np.int64)
        blocks = self._block_sizes.shape[1]
        if blocks > 1:
            first = np.arange(0, blocks * BLOCK, BLOCK)
            numbers += np.repeat(np.tile(first, len(rows)), self._block_sizes[rows].ravel())
        return numbers
