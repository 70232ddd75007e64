"""The documents of an index in Milvus, a search engine that runs in this process or on a cluster."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.utils.logging import tqdm

from ..models.arguments import check_integer
from ..models.fingerprints import digest_tensors
from .document_rows import DocumentRows, best_documents
from .encoding import query_vectors
from .index_files import pack_ids
from .searching import by_row
from .sparse import ROWS_PER_TOKEN, sparse_query

if TYPE_CHECKING:
    from pymilvus import MilvusClient

    from .encoding import Model
    from .index import SenseIndex

CANDIDATES, BATCH = 100, 256  # documents that are scored by senses, and documents that are sent together
LONGEST_ID = 65_535  # bytes, the longest string that Milvus takes


class SenseCollection:
    """A collection of Milvus with the documents of an index, as sparse vectors.

    Milvus runs in this process, with a file (`pip install milvus-lite`), or as a server or a cluster. The client
    decides, the rest is the same: `MilvusClient("articles.db")`, `MilvusClient("http://localhost:19530")`.

    Args:
        index: The index. Its table and its model are used for queries, its documents only by :meth:`fill`.
        client: A client of Milvus, of the package `pymilvus`.
        name: Name of the collection.

    Raises:
        ValueError: There is a collection of this name with other documents.

    Example:
        >>> from pymilvus import MilvusClient  # doctest: +SKIP
        >>> collection = SenseCollection(index, MilvusClient("articles.db"))  # doctest: +SKIP
        >>> collection.fill()  # doctest: +SKIP
        >>> ids, scores = collection.search("Where did they sit?")  # doctest: +SKIP
    """

    def __init__(self, index: "SenseIndex", client: "MilvusClient", name: str = "senses") -> None:
        self.index, self.client, self.name = index, client, name
        self._documents = documents = index.documents
        self._is_full = False
        tensors = {"rows": torch.from_numpy(documents.rows), "offsets": torch.from_numpy(documents.offsets)}
        tensors |= pack_ids(index.ids)
        # The name of the field says which documents it has. Not every form of Milvus keeps a description.
        self._field = f"senses_{digest_tensors(index.senses.fingerprint(), tensors)}"
        if client.has_collection(name):
            if self._field not in [field["name"] for field in client.describe_collection(name)["fields"]]:
                raise ValueError(f"the collection {name!r} has other documents: give another name, or drop it first")
            client.load_collection(name)

    def __len__(self) -> int:
        if not self.client.has_collection(self.name):
            return 0
        found: int = self.client.query(self.name, filter="", output_fields=["count(*)"])[0]["count(*)"]
        return found

    def fill(self) -> None:
        """Make the collection, or complete one whose filling was interrupted.

        Raises:
            ValueError: The index has no documents, or it has changed since this object was made.
        """
        from pymilvus import DataType

        # Describe the fields.
        self._check_index()
        ids = self.index.ids
        if not ids:
            raise ValueError("the index has no documents: add some first")
        if not self.client.has_collection(self.name):
            schema = self.client.create_schema()
            schema.add_field("number", DataType.INT64, is_primary=True)
            if isinstance(ids[0], str):
                schema.add_field("id", DataType.VARCHAR, max_length=LONGEST_ID)
            else:
                schema.add_field("id", DataType.INT64)
            schema.add_field(self._field, DataType.SPARSE_FLOAT_VECTOR)
            lists = self.client.prepare_index_params()
            lists.add_index(self._field, index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
            self.client.create_collection(self.name, schema=schema, index_params=lists, consistency_level="Strong")

        # Send what is not there yet. Documents are sent in their order.
        documents, size = self.index.documents, len(ids)
        done = len(self) // BATCH * BATCH
        with tqdm(total=size, initial=done, desc="Filling", unit=" documents", leave=False, disable=size < 64) as bar:
            for first in range(done, size, BATCH):
                numbers = range(first, min(first + BATCH, size))
                rows = [dict.fromkeys(documents.of_document(number).tolist(), 1.0) for number in numbers]
                entities: list[Any] = [
                    {"number": number, "id": ids[number], self._field: row} for number, row in zip(numbers, rows)
                ]
                self.client.upsert(self.name, entities)
                bar.update(len(numbers))

    def _check_index(self) -> None:
        """Raise a ValueError if documents were added to the index, or removed from it."""
        if self.index.documents is not self._documents:
            raise ValueError(
                f"the index has changed, and the collection {self.name!r} has its old documents: make another "
                "SenseCollection with a new name, or drop the collection first, and fill it"
            )

    def search(
        self,
        queries: str | Iterable[str],
        top_k: int = 10,
        *,
        candidates: int = CANDIDATES,
        rows_per_token: int = ROWS_PER_TOKEN,
        model: "Model | None" = None,
        prompt_name: str | None = None,
        batch_size: int = 32,
    ) -> tuple[list[Any], Any]:
        """Search the collection by sparse vectors, and rank what was found by the senses.

        Args:
            queries: One text or many.
            top_k: How many documents to return for each query.
            candidates: Documents that are found by sparse vectors, of which the best are returned.
            rows_per_token: As in :func:`sparse_queries`.
            model: As in :meth:`SenseIndex.search`.
            prompt_name: As in :meth:`SenseIndex.search`.
            batch_size: Queries in a forward pass.

        Returns:
            The ids, best first, and their scores, float32. For one text a list of ids and `[found]`, for many a list
            of such lists and a list of such arrays. Fewer than `top_k` are found if fewer documents share a row with
            the query.

        Raises:
            ValueError: The collection is not filled, the index has changed since this object was made, a number is
                below 1, or a query has no tokens.
        """
        self._check_index()
        top_k, candidates = check_integer("top_k", top_k, 1), check_integer("candidates", candidates, 1)
        rows_per_token = check_integer("rows_per_token", rows_per_token, 1)
        if not self._is_full:
            if (filled := len(self)) < len(self.index):
                raise ValueError(
                    f"the collection {self.name!r} has {filled:,} of {len(self.index):,} documents: call fill()"
                )
            self._is_full = True  # it need not be counted again
        ids, scores = [], []
        for vectors in query_vectors(self.index.encoder(model, batch_size, prompt_name), queries):
            cosines = self.index.cosines(vectors)
            sparse = sparse_query(cosines, rows_per_token)
            found = self.client.search(
                self.name,
                data=[dict(zip(sparse.indices()[0].tolist(), sparse.values().tolist()))],
                anns_field=self._field,
                limit=max(candidates, top_k),
                output_fields=["number", "id", self._field],
            )[0]
            best, values = self._rank([hit["entity"] for hit in found], cosines, top_k)
            ids.append(best)
            scores.append(values)
        return (ids[0], scores[0]) if isinstance(queries, str) else (ids, scores)

    def _rank(
        self, entities: Sequence[Mapping[str, Any]], cosines: Tensor, top_k: int
    ) -> tuple[list[Any], NDArray[np.float32]]:
        """Return the ids of the best entities by the senses, and their scores.

        Args:
            entities: What Milvus has found.
            cosines: The cosine of each token of the query with each row, `[tokens, rows]`.
            top_k: How many to return.
        """
        if not entities:
            return [], np.zeros(0, dtype=np.float32)
        # Of equal scores the document that was added earlier comes first, as in an index.
        entities = sorted(entities, key=lambda entity: entity["number"])
        rows = [np.fromiter(entity[self._field], dtype=np.int64) for entity in entities]
        documents = DocumentRows(np.concatenate(rows), np.append(0, np.cumsum([len(each) for each in rows])))
        scores = documents.scores(by_row(cosines))
        best = best_documents(scores, min(top_k, len(entities)))
        return [entities[place]["id"] for place in best.tolist()], scores[best]
