"""Rows of an index for tokens that the dictionary has no senses for."""

from collections.abc import Mapping

import torch
from torch import Tensor


class OwnRows:
    """One row for each token without senses: the mean of the vectors that it had when it was added.

    Args:
        hidden_size: Width of a row.

    Attributes:
        tokens: The token of each row, `[rows]`, int64.
    """

    def __init__(self, hidden_size: int) -> None:
        self.tokens = torch.zeros(0, dtype=torch.int64)
        self._sums = torch.zeros(0, hidden_size, dtype=torch.float64)
        self._counts = torch.zeros(0, dtype=torch.float64)
        self._num_fixed = 0

    @classmethod
    def of(cls, tokens: Tensor, vectors: Tensor) -> "OwnRows":
        """Return rows that do not change any more.

        Args:
            tokens: The token of each row, `[rows]`.
            vectors: The rows, `[rows, hidden]`.
        """
        rows = cls(vectors.shape[1])
        rows.tokens, rows._sums = tokens, vectors.double()
        rows._counts, rows._num_fixed = torch.ones(len(tokens), dtype=torch.float64), len(tokens)
        return rows

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def vectors(self) -> Tensor:
        """The rows, `[rows, hidden]`, float32."""
        return (self._sums / self._counts[:, None]).float()

    def copy(self) -> "OwnRows":
        """Return a copy whose rows do not change any more; only new tokens get rows."""
        return OwnRows.of(self.tokens, self.vectors)

    def take(self, tokens: Tensor, vectors: Tensor) -> Tensor:
        """Return the row of each token. A new token gets a row, and a row that is not fixed counts the vectors.

        Args:
            tokens: `[n]`.
            vectors: `[n, hidden]`.
        """
        return self._add(tokens, vectors.double(), torch.ones(len(tokens), dtype=torch.float64))

    def absorb(self, others: "OwnRows") -> Tensor:
        """Return the row of the token of each other row, as if all vectors had been taken.

        Args:
            others: The other rows.
        """
        return self._add(others.tokens, others._sums, others._counts)

    def _add(self, tokens: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
        new = tokens.unique()
        new = new[~torch.isin(new, self.tokens)]
        self.tokens = torch.cat([self.tokens, new])
        self._sums = torch.cat([self._sums, self._sums.new_zeros(len(new), self._sums.shape[1])])
        self._counts = torch.cat([self._counts, self._counts.new_zeros(len(new))])
        order = self.tokens.argsort()
        rows = order[torch.searchsorted(self.tokens[order], tokens)]
        is_open = rows >= self._num_fixed
        self._sums.index_add_(0, rows[is_open], sums[is_open])
        self._counts.index_add_(0, rows[is_open], counts[is_open])
        return rows

    def tensors(self) -> dict[str, Tensor]:
        """Return what :meth:`from_tensors` needs to make rows that can take further vectors."""
        return {"own_tokens": self.tokens, "own_sums": self._sums, "own_counts": self._counts}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "OwnRows":
        """Return the rows in tensors from :meth:`tensors`."""
        rows = cls(tensors["own_sums"].shape[1])
        rows.tokens, rows._sums, rows._counts = (tensors[f"own_{name}"] for name in ("tokens", "sums", "counts"))
        return rows
