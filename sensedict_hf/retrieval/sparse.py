"""The sparse form of an index, for search engines that have inverted lists, and the search in one of them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..models.arguments import check_integer
from .document_rows import DocumentRows, best_documents
from .searching import by_row

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from .encoding import Model
    from .index import SenseIndex

# Rows that a token of a query looks up, documents that are scored by senses, and documents that are sent together.
ROWS_PER_TOKEN, CANDIDATES, BATCH = 64, 100, 256
VECTOR = "senses"  # name of the sparse vector in a collection


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
        sparse_query(index._searcher.cosines(vectors), rows_per_token)
        for vectors in index._encode(queries, model, prompt_name, batch_size)
    ]
    return torch.stack(found) if found else torch.zeros(0, index.num_rows, dtype=torch.float32).to_sparse()


def fill_collection(client: "QdrantClient", name: str, index: "SenseIndex") -> None:
    """Make a collection of Qdrant with the documents of an index, as sparse vectors.

    Qdrant runs in this process, from a folder or in memory, or as a server or a cluster. The client decides, the rest
    is the same: `QdrantClient(":memory:")`, `QdrantClient(path=...)`, `QdrantClient(url=...)`.

    Args:
        client: A client of Qdrant, of the package `qdrant-client`.
        name: Name of the new collection.
        index: The index.

    Raises:
        ValueError: The collection is there already.

    Example:
        >>> from qdrant_client import QdrantClient  # doctest: +SKIP
        >>> client = QdrantClient(":memory:")  # doctest: +SKIP
        >>> fill_collection(client, "articles", index)  # doctest: +SKIP
        >>> search_collection(client, "articles", index, "Where did they sit?")  # doctest: +SKIP
    """
    from qdrant_client import models

    if client.collection_exists(name):
        raise ValueError(f"there is a collection {name!r} already: give another name, or delete it first")
    client.create_collection(name, vectors_config={}, sparse_vectors_config={VECTOR: models.SparseVectorParams()})
    for first in range(0, len(index), BATCH):
        points = []
        for number in range(first, min(first + BATCH, len(index))):
            rows = index._documents.of_document(number).tolist()
            vector: Any = {VECTOR: models.SparseVector(indices=rows, values=[1.0] * len(rows))}
            points.append(models.PointStruct(id=number, vector=vector, payload={"id": index.ids[number]}))
        client.upsert(name, points)


def search_collection(
    client: "QdrantClient",
    name: str,
    index: "SenseIndex",
    query: str,
    top_k: int = 10,
    *,
    candidates: int = CANDIDATES,
    rows_per_token: int = ROWS_PER_TOKEN,
    model: "Model | None" = None,
    prompt_name: str | None = None,
) -> tuple[list[Any], NDArray[np.float32]]:
    """Search a collection by its sparse vectors, and rank what was found by the senses.

    The rows of the documents come from the collection. The index gives only the table and the model.

    Args:
        client: A client of Qdrant.
        name: Name of a collection that :func:`fill_collection` has made.
        index: The index that the collection was made of. Its documents are not read.
        query: The query.
        top_k: How many documents to return.
        candidates: Documents that are found by sparse vectors, of which the best are returned.
        rows_per_token: As in :func:`sparse_queries`.
        model: As in :meth:`SenseIndex.search`.
        prompt_name: As in :meth:`SenseIndex.search`.

    Returns:
        The ids, best first, and their scores, float32, as from :meth:`SenseIndex.search`.

    Raises:
        ValueError: A number is below 1, or the query has no tokens.
    """
    from qdrant_client import models

    top_k, candidates = check_integer("top_k", top_k, 1), check_integer("candidates", candidates, 1)
    rows_per_token = check_integer("rows_per_token", rows_per_token, 1)
    (vectors,) = index._encode(query, model, prompt_name, 1)
    cosines = index._searcher.cosines(vectors)
    sparse = sparse_query(cosines, rows_per_token)
    found = client.query_points(
        name,
        query=models.SparseVector(indices=sparse.indices()[0].tolist(), values=sparse.values().tolist()),
        using=VECTOR,
        limit=max(candidates, top_k),
        with_vectors=True,
    ).points
    if not found:
        return [], np.zeros(0, dtype=np.float32)

    # Rank by the senses. Of equal scores the document that was added earlier comes first, as in an index.
    found.sort(key=lambda point: point.id)
    vectors_found: list[Any] = [point.vector for point in found]
    rows = [np.array(vector[VECTOR].indices) for vector in vectors_found]
    sizes = [len(each) for each in rows]
    documents = DocumentRows(np.concatenate(rows), np.append(0, np.cumsum(sizes)))
    scores = documents.scores(by_row(cosines))
    best = best_documents(scores, min(top_k, len(found)))
    return [(found[place].payload or {})["id"] for place in best.tolist()], scores[best]
