"""The sense index: search by late interaction, over documents that are kept as senses."""

import os
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.utils import logging

from ..data import Texts
from ..models.arguments import check_folder, check_integer
from ..models.loading import check_dictionary
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..processes import common_folder, locked, process_state
from .encoding import (
    Model,
    encode_corpus,
    encode_queries,
    load_encoder,
    query_vectors,
)
from .explaining import Match, find_matches
from .index_files import (
    PARTS,
    check_known,
    check_mergeable,
    check_target,
    read_index,
    remove_parts,
    write_index,
)
from .own_rows import OwnRows
from .parts import Part, join_parts
from .searching import Searcher
from .source import ModelSource
from .sparse import sparse_documents
from .token_vectors import TokenEncoder

logger = logging.get_logger(__name__)
GROUP = 4  # queries that are multiplied with the table together


class SenseIndex:
    """Search documents by late interaction, at two to four bytes a token. Make one with :meth:`build` or :meth:`load`.

    A document is the list of the senses of its tokens, as row numbers of one table. A query keeps the vectors of its
    tokens. The score of a document is the sum, over the tokens of the query, of the largest cosine with a token of the
    document (MaxSim, Khattab and Zaharia, "ColBERT", SIGIR 2020). A token of a document can only be a row of the
    table, so one product of query and table has all cosines, and scoring a document is looking them up.

    Special tokens and the prompt of the model are in neither documents nor queries.

    Attributes:
        senses: The dictionary.
        documents: The rows of the documents, in the order in which they were added.
        ids: Their ids.

    Example:
        >>> from sensedict_hf import SenseIndex
        >>> index = SenseIndex.build(teacher, senses, texts[:50])
        >>> ids, scores = index.search(texts[7], top_k=3)
        >>> ids[0], scores.shape
        (7, (3,))
    """

    def __init__(self, senses: SenseEmbeddingModel, content: Part, source: ModelSource) -> None:
        self.senses, self._source = senses, source
        self.documents, self._own_rows, self.ids = content
        self._made: Searcher | None = None

    def __len__(self) -> int:
        return len(self.documents)

    def __repr__(self) -> str:
        return f"SenseIndex({len(self):,} documents, {self.num_rows:,} rows, {self.nbytes / 1e6:.1f} MB)"

    @property
    def num_rows(self) -> int:
        """The rows of the table: all senses of the dictionary, and one for each token that has none."""
        return self.senses.config.num_senses + len(self._own_rows)

    @property
    def num_own_rows(self) -> int:
        """How many tokens without senses have got a row of their own."""
        return len(self._own_rows)

    @property
    def nbytes(self) -> int:
        """Size of the documents in bytes, without the table, which does not grow with them."""
        return self.documents.rows.nbytes + self.documents.offsets.nbytes

    @classmethod
    def build(
        cls,
        model: Model,
        senses: SenseEmbeddingModel,
        documents: Texts,
        ids: Iterable[str] | Iterable[int] | None = None,
        *,
        output_dir: str | os.PathLike[str] | None = None,
        text_column: str = "text",
        batch_size: int = 32,
    ) -> "SenseIndex":
        """Build an index, which is returned in memory.

        A document that the model cannot read as a whole is cut into windows. A token that the dictionary has no senses
        for gets a row of its own: the mean of its vectors.

        Args:
            model: What encodes the documents: the teacher of the dictionary or a student, as a model, name or folder.
            senses: The dictionary. It may have been built from other texts than the documents.
            documents: A list or iterable of strings, or a dataset with a text column. They are read in batches.
            ids: Strings or integers, one for each document and all different. Default: 0, 1, 2 ...
            output_dir: Folder where the index is saved. The same call continues an interrupted build there, with the
                same result. Processes that `accelerate launch` has started share the work and need it. Default: the
                index is held in memory.
            text_column: Name of the text column of a dataset.
            batch_size: Windows in a forward pass.

        Raises:
            ValueError: The dictionary has no senses or does not fit the model, a document is no string or has no
                tokens, the ids are not unique, of two kinds, or not as many as the documents, or `output_dir` holds
                something else.

        Example:
            >>> from sensedict_hf import SenseIndex
            >>> index = SenseIndex.build(student, senses, ["River bank.", "Savings bank."], ids=["river", "money"])
            >>> index.search("Savings bank.", top_k=1, model=teacher)[0]
            ['money']
        """
        check_dictionary(senses)
        if not senses.config.num_senses:
            raise ValueError(
                "the dictionary has no senses, as that of a student that returns none: give the dictionary that the "
                "student was made from"
            )
        folder = common_folder(None if output_dir is None else check_folder("output_dir", output_dir))
        state = process_state()
        empty = join_parts([], senses.config.num_senses, OwnRows(senses.config.hidden_size))
        device = state.device if state.num_processes > 1 else None
        index = cls(senses, empty, ModelSource(load_encoder(model, device)))
        encoder = index.encoder(None, batch_size)
        with locked(folder):
            if folder is not None:
                check_target(folder, senses, new=True)
            index._join(encode_corpus(encoder, senses, documents, text_column, ids, folder=folder and folder / PARTS))
            if folder is not None and state.is_main_process:
                index.save(folder)
            state.wait_for_everyone()  # the others may still read the parts
            if folder is not None and state.is_main_process:
                remove_parts(folder)
            state.wait_for_everyone()
        return index

    def add(
        self,
        documents: Texts,
        ids: Iterable[str] | Iterable[int] | None = None,
        *,
        model: Model | None = None,
        text_column: str = "text",
        batch_size: int = 32,
    ) -> None:
        """Add documents. After an error the index is as it was before.

        Args:
            documents: As in :meth:`build`.
            ids: As in :meth:`build`; they must also differ from the ids in the index. Default: the integers that
                follow the largest one.
            model: What encodes the documents. Default: the model that the index was built with.
            text_column: Name of the text column of a dataset.
            batch_size: Windows in a forward pass.

        Raises:
            ValueError: As in :meth:`build`.

        Example:
            >>> from sensedict_hf import SenseIndex
            >>> index = SenseIndex.build(teacher, senses, texts[:5])
            >>> index.add(texts[5:8])
            >>> index.ids
            [0, 1, 2, 3, 4, 5, 6, 7]
        """
        encoder = self.encoder(model, batch_size)
        self._join(encode_corpus(encoder, self.senses, documents, text_column, ids, self.ids))

    def _join(self, parts: Iterable[Part]) -> None:
        """Add documents that are encoded. The rows that are there do not change."""
        known = Part(self.documents, OwnRows(self.senses.config.hidden_size), self.ids)
        whole = join_parts(chain([known], parts), self.senses.config.num_senses, self._own_rows.copy())
        if added := len(whole.own_rows) - len(self._own_rows):
            logger.info(f"{added:,} tokens without senses have got a row of their own, the mean of their vectors")
        self.documents, self._own_rows, self.ids, self._made = *whole, None

    @classmethod
    def merge(cls, indexes: Sequence["SenseIndex"]) -> "SenseIndex":
        """Join indexes of different documents into one, which has the model of the first one.

        A token without senses keeps its row in the first index. Other tokens get the mean of their rows.

        Args:
            indexes: The indexes, of one dictionary.

        Raises:
            ValueError: There are none, the dictionaries differ, or an id is in two of them.

        Example:
            >>> from sensedict_hf import SenseIndex
            >>> parts = [SenseIndex.build(teacher, senses, texts[:5], ids=range(5))]
            >>> parts.append(SenseIndex.build(teacher, senses, texts[5:9], ids=range(5, 9)))
            >>> SenseIndex.merge(parts).ids
            [0, 1, 2, 3, 4, 5, 6, 7, 8]
        """
        first = check_mergeable(indexes)
        merged = cls(first.senses, Part(first.documents, first._own_rows, first.ids), first._source)
        merged._join(Part(index.documents, index._own_rows.copy(), index.ids) for index in indexes[1:])
        return merged

    def remove(self, ids: Iterable[str] | Iterable[int]) -> None:
        """Remove documents.

        Args:
            ids: Their ids.

        Raises:
            ValueError: The index has no document with one of the ids.

        Example:
            >>> from sensedict_hf import SenseIndex
            >>> index = SenseIndex.build(teacher, senses, texts[:5])
            >>> index.remove([1, 3])
            >>> index.ids
            [0, 2, 4]
        """
        unwanted = check_known(ids, self.ids)
        kept = np.flatnonzero([name not in unwanted for name in self.ids])
        self.documents, self._made = self.documents.take(kept), None
        self.ids = [name for name in self.ids if name not in unwanted]

    def search(
        self,
        queries: str | Iterable[str],
        top_k: int = 10,
        *,
        model: Model | None = None,
        prompt_name: str | None = None,
        batch_size: int = 32,
    ) -> tuple[list[Any], NDArray[np.float32]]:
        """Find the documents with the largest scores. The result is exact.

        In a large index inverted lists tell which documents can be among the best, and only these are scored. The
        lists are made by the first search, and take about as much memory as the documents.

        Args:
            queries: One text or many.
            top_k: How many documents to return for each query; all if the index has fewer.
            model: What encodes the queries: the teacher of the dictionary or a student. Default: the model that the
                index was built with.
            prompt_name: Name of the prompt of the model for queries.
            batch_size: Queries in a forward pass.

        Returns:
            The ids, best first, and their scores, float32. For one text a list of ids and `[top_k]`, for many a list
            of such lists and `[queries, top_k]`. Of equal scores the document that was added earlier comes first.

        Raises:
            ValueError: A query is no string or has no tokens, the index is empty, or `top_k` is below 1.

        Example:
            >>> from sensedict_hf import SenseIndex
            >>> index = SenseIndex.build(teacher, senses, texts[:50])
            >>> ids, scores = index.search([texts[3], texts[4]], top_k=2)
            >>> [best[0] for best in ids], scores.shape
            ([3, 4], (2, 2))
        """
        top_k = min(check_integer("top_k", top_k, 1), len(self))
        if not top_k:
            raise ValueError("the index has no documents: add some first")
        ids, scores = [], []
        encoded = query_vectors(self.encoder(model, batch_size, prompt_name), queries)
        while group := list(islice(encoded, GROUP)):
            for best, found in self._searcher.search(group, top_k):
                ids.append([self.ids[number] for number in best.tolist()])
                scores.append(found)
        if isinstance(queries, str):
            return ids[0], scores[0]
        return ids, np.stack(scores) if scores else np.empty((0, top_k), dtype=np.float32)

    def to_sparse(self) -> Tensor:
        """Return the documents as sentence-transformers' `SparseEncoder` returns them: a sparse tensor.

        It is `[documents, num_rows]`, with 1 for each row that a document has. :func:`sparse_queries` makes queries.

        Example:
            >>> from sensedict_hf import SenseIndex
            >>> index = SenseIndex.build(teacher, senses, texts[:5])
            >>> index.to_sparse().shape == (5, index.num_rows)
            True
        """
        return sparse_documents(self.documents, self.num_rows)

    def explain(
        self, query: str, document: str | int, *, model: Model | None = None, prompt_name: str | None = None
    ) -> list[Match]:
        """Return what each token of a query matched in a document. The cosines sum up to the score.

        Args:
            query: The query.
            document: The id of the document.
            model: As in :meth:`search`.
            prompt_name: As in :meth:`search`.

        Raises:
            ValueError: The query has no tokens, or the index has no such document.

        Example:
            >>> from sensedict_hf import SenseIndex
            >>> index = SenseIndex.build(teacher, senses, ["The bank of the river.", "Money in the bank."])
            >>> for match in index.explain("river bank", 0):
            ...     print(match.query_token, match.document_token)
            river river
            bank bank
        """
        check_known([document], self.ids)
        encoder = self.encoder(model, prompt_name=prompt_name)
        tokens, vectors = next(encode_queries(encoder, [query]))
        rows = self.documents.of_document(self.ids.index(document))
        return find_matches(tokens, self.cosines(vectors), rows, encoder.tokenizer, self.senses, self._own_rows)

    def cosines(self, vectors: Tensor) -> Tensor:
        """Return the cosine of each vector of a query, `[tokens, hidden]`, with each row, `[tokens, num_rows]`."""
        return self._searcher.cosines(vectors)

    @property
    def _searcher(self) -> Searcher:
        """The table and the documents, ready to be searched. A change of the index sets it to None."""
        if self._made is None:
            table = torch.cat([self.senses.dequantized().float().cpu(), self._own_rows.vectors])
            self._made = Searcher(table, self.documents)
        return self._made

    def encoder(
        self, model: Model | None = None, batch_size: int = 32, prompt_name: str | None = None
    ) -> TokenEncoder:
        """Return what encodes texts: a model, or the one that the index was built with, which is loaded once."""
        used = self._source.load(self.senses) if model is None else load_encoder(model)
        return TokenEncoder(used, self.senses, batch_size, prompt_name)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Save the index with its dictionary. The model is not saved, only its name.

        Args:
            folder: A new folder, or that of an index, which is replaced. An interruption leaves the old index whole.

        Raises:
            ValueError: The folder holds something else, or an index of another dictionary.

        Example:
            >>> from sensedict_hf import SenseIndex
            >>> SenseIndex.build(teacher, senses, texts[:5]).save("index")
            >>> len(SenseIndex.load("index", model=teacher))
            5
        """
        folder, content = check_folder("folder", folder), Part(self.documents, self._own_rows, self.ids)
        check_target(folder, self.senses)
        write_index(folder, content, self._source.name(folder), self._source.probe(self.senses), self.senses)

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], model: Model | None = None, *, trust_remote_code: bool = False
    ) -> "SenseIndex":
        """Load an index. Its documents stay mapped from the file.

        Args:
            folder: The folder of the index.
            model: What encodes queries. Default: the model that the index was built with, loaded when it is needed.
            trust_remote_code: Run Python code that comes with the model, which is then loaded at once.

        Raises:
            ValueError: The folder holds no finished index, or one that is damaged.

        Example:
            >>> from sensedict_hf import SenseIndex
            >>> SenseIndex.build(teacher, senses, texts[:5], ids=list("abcde")).save("letters")
            >>> SenseIndex.load("letters", model=teacher).search(texts[2], top_k=1)[0]
            ['c']
        """
        folder = check_folder("folder", folder)
        senses, content, name, probe = read_index(folder)
        return cls(senses, content, ModelSource.find(name, folder, probe, model, trust_remote_code))
