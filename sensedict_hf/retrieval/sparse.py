"""The sparse form of an index, for search engines that have inverted lists."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..models.arguments import check_integer
from .document_rows import DocumentRows
from .encoding import query_vectors

if TYPE_CHECKING:
    from .encoding import Model
    from .index import SenseIndex

ROWS_PER_TOKEN = 64  # rows that a token of a query looks up


def sparse_documents(documents: DocumentRows, num_rows: int) -> Tensor:
    """Return documents as a sparse tensor, `[documents, rows]`, with 1 for each row that a document has.

    Args:
        documents: The documents.
        num_rows: Rows of the table.
    """
    owners = np.repeat(np.arange(len(documents)), np.diff(documents.offsets))
    places = torch.from_numpy(np.stack([owners, documents.rows.astype(np.int64)]))
    ones = torch.ones(places.shape[1], dtype=torch.float32)
    return torch.sparse_coo_tensor(places, ones, (len(documents), num_rows), check_invariants=False, is_coalesced=True)


def sparse_query(cosines: Tensor, rows_per_token: int) -> Tensor:
    """Return a query as a sparse tensor, `[rows]`.

    Each token gives its best rows weights: how much larger their cosines are than that of the next row. So a row that
    is only as good as any other adds nothing.

    Args:
        cosines: The cosine of each token of the query with each row, `[query tokens, rows]`.
        rows_per_token: Rows that a token gives weights.
    """
    best = cosines.topk(min(rows_per_token + 1, cosines.shape[1]), dim=1)
    rows, weights = best.indices[:, :-1], best.values[:, :-1] - best.values[:, -1:]
    return torch.sparse_coo_tensor(
        rows.reshape(1, -1), weights.flatten(), (cosines.shape[1],), check_invariants=False
    ).coalesce()


def sparse_queries(
    index: "SenseIndex",
    queries: Iterable[str],
    *,
    rows_per_token: int = ROWS_PER_TOKEN,
    model: "Model | None" = None,
    prompt_name: str | None = None,
    batch_size: int = 32,
) -> Tensor:
    """Return queries as sentence-transformers' `SparseEncoder` returns them, for documents from `index.to_sparse()`.

    The score of a document is the product of both: a sum, where an index takes a maximum. It finds nearly the same
    documents, in another order, so rank them by an index afterwards.

    Args:
        index: The index.
        queries: The texts of the queries.
        rows_per_token: Rows that a token of a query gives weights, at least 1.
        model: As in :meth:`SenseIndex.search`.
        prompt_name: As in :meth:`SenseIndex.search`.
        batch_size: Queries in a forward pass.

    Returns:
        A sparse tensor, `[queries, num_rows]`.

    Raises:
        ValueError: A query has no tokens, or `rows_per_token` is below 1.

    Example:
        >>> from sensedict_hf import SenseIndex, sparse_queries
        >>> index = SenseIndex.build(teacher, senses, texts[:5])
        >>> scores = sparse_queries(index, [texts[2]]).to_dense() @ index.to_sparse().to_dense().T
        >>> scores.shape
        torch.Size([1, 5])
    """
    rows_per_token = check_integer("rows_per_token", rows_per_token, 1)
    found = [
        sparse_query(index.cosines(vectors), rows_per_token)
        for vectors in query_vectors(index.encoder(model, batch_size, prompt_name), queries)
    ]
    return torch.stack(found) if found else torch.zeros(0, index.num_rows, dtype=torch.float32).to_sparse()
