"""Documents as lists of row numbers, one document after the other, and their scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Row numbers take two bytes if the table has at most so many rows.
SHORT_ROWS = 1 << 16
# Numbers that are looked up at a time; 4 MB stay in the cache of a CPU.
BLOCK_ELEMENTS = 1 << 20


def rows_dtype(num_rows: int) -> type[np.uint16] | type[np.int32]:
    """Return the dtype of row numbers of a table.

    Args:
        num_rows: Rows of the table.
    """
    return np.uint16 if num_rows <= SHORT_ROWS else np.int32


@dataclass(frozen=True)
class DocumentRows:
    """The rows of a table that each document consists of, without repeats, because the maximum does not need them.

    Attributes:
        rows: Row numbers, uint16 or int32, `[entries]`, ascending in each document.
        offsets: The rows of document `d` are `rows[offsets[d]:offsets[d + 1]]`; `[documents + 1]`, int64. No document
            is empty.
    """

    rows: NDArray[np.integer[Any]]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def of(cls, documents: NDArray[np.int64], rows: NDArray[np.int64], count: int) -> "DocumentRows":
        """Make the lists of documents from single tokens.

        Args:
            documents: The document of each token, `[tokens]`, in any order.
            rows: The row of each token, `[tokens]`.
            count: Number of documents.
        """
        keys = np.unique(documents << 32 | rows)
        sizes = np.bincount(keys >> 32, minlength=count)
        return cls((keys & ((1 << 32) - 1)).astype(np.int32), np.append(0, np.cumsum(sizes)))

    def renumber(self, numbers: NDArray[np.int64]) -> "DocumentRows":
        """Return the same documents with other numbers of rows.

        Args:
            numbers: The new number of each row, all different, `[rows]`.
        """
        owners = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        return DocumentRows.of(owners, numbers[self.rows], len(self))

    @classmethod
    def join(cls, parts: Sequence["DocumentRows"], num_rows: int) -> "DocumentRows":
        """Join lists of documents.

        Args:
            parts: The lists.
            num_rows: Rows of the table.
        """
        sizes = np.concatenate([np.zeros(1, dtype=np.int64), *(np.diff(part.offsets) for part in parts)])
        rows = [part.rows.astype(rows_dtype(num_rows), copy=False) for part in parts]
        joined = np.concatenate(rows) if rows else np.zeros(0, dtype=rows_dtype(num_rows))
        return cls(joined, np.cumsum(sizes))

    def take(self, numbers: NDArray[np.int64]) -> "DocumentRows":
        """Return some of the documents.

        Args:
            numbers: Their numbers, `[n]`.
        """
        sizes = np.diff(self.offsets)[numbers]
        offsets = np.append(0, np.cumsum(sizes))
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[numbers] - offsets[:-1], sizes)
        return DocumentRows(self.rows[places], offsets)

    def of_document(self, number: int) -> NDArray[np.integer[Any]]:
        """Return the rows of one document.

        Args:
            number: Number of the document.
        """
        return self.rows[self.offsets[number] : self.offsets[number + 1]]

    def scores(self, cosines: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the score of every document: the sum over the tokens of a query of their largest cosine.

        Args:
            cosines: The cosine of each row with each token of the query, `[rows, query tokens]`.

        Returns:
            `[documents]`.
        """
        # numpy's reduceat over blocks that stay in the cache is faster than torch's embedding_bag and segment_reduce.
        scores = np.empty(len(self), dtype=np.float32)
        step = max(1, BLOCK_ELEMENTS // cosines.shape[1])
        # Where blocks of about `step` entries begin; every block has at least one document.
        borders = np.unique(np.searchsorted(self.offsets, np.arange(0, self.offsets[-1] + step, step)))
        borders = np.unique(np.append(np.minimum(borders, len(self)), len(self)))
        for first, last in zip(borders[:-1], borders[1:]):
            begin, end = self.offsets[first], self.offsets[last]
            found = np.take(cosines, self.rows[begin:end], axis=0)
            best = np.maximum.reduceat(found, self.offsets[first:last] - begin, axis=0)
            scores[first:last] = best.sum(axis=1)
        return scores


def best_documents(scores: NDArray[np.float32], top_k: int) -> NDArray[np.int64]:
    """Return the numbers of the documents with the largest scores, best first; of equal ones the earlier first.

    Args:
        scores: `[documents]`.
        top_k: How many, at most `documents`.
    """
    least = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
    candidates = np.flatnonzero(scores >= least)
    return candidates[np.argsort(-scores[candidates], kind="stable")[:top_k]]
