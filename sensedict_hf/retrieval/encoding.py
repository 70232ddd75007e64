"""Documents as rows, queries as vectors, and the models that encode both."""

import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import count, islice
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel
from transformers.utils.logging import tqdm

from ..data import Texts, iterate_texts
from ..models.checkpoints import read_json
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.modeling_skd_student import SKDStudentModel
from ..models.teachers import Teacher, load_teacher
from .document_rows import DocumentRows
from .index_files import check_ids
from .own_rows import OwnRows
from .token_vectors import TokenEncoder

# What encodes documents and queries.
Model: TypeAlias = str | os.PathLike[str] | PreTrainedModel | Teacher | SKDStudentModel
CHUNK = 1024  # texts that are tokenized and sorted by length at a time


def encode_documents(
    encoder: TokenEncoder, senses: SenseEmbeddingModel, own_rows: OwnRows, texts: list[str], first: int = 0
) -> DocumentRows:
    """Return the rows of some documents.

    Args:
        encoder: Makes the vectors of tokens.
        senses: The dictionary.
        own_rows: The rows of tokens without senses. New tokens are added.
        texts: The documents.
        first: Number of the first document, for messages.

    Raises:
        ValueError: A document has no tokens.
    """
    tokenized = encoder.tokenize(texts)
    for number, row in enumerate(tokenized):
        if not row:
            raise ValueError(
                f"document {first + number} ({texts[number]!r:.60}) has no tokens: remove it, as nothing can find it"
            )
    documents, rows, offsets = [], [], senses.offsets.cpu()
    for batch in encoder.batches(tokenized):
        tokens = batch.token_ids
        vectors = batch.vectors.to(senses.device)
        sense_ids = senses(tokens[None].to(senses.device), vectors[None], assignment="none").sense_ids[0].cpu()
        found = offsets[tokens] + sense_ids
        is_missing = sense_ids < 0
        if is_missing.any():
            own = own_rows.take(tokens[is_missing], vectors.cpu()[is_missing])
            found[is_missing] = own + senses.config.num_senses
        documents.append(batch.texts)
        rows.append(found)
    return DocumentRows.of(torch.cat(documents).numpy(), torch.cat(rows).numpy(), len(texts))


def encode_corpus(
    encoder: TokenEncoder,
    senses: SenseEmbeddingModel,
    own_rows: OwnRows,
    documents: Texts,
    text_column: str,
    ids: Iterable[str] | Iterable[int] | None,
    known_ids: Sequence[str] | Sequence[int],
) -> tuple[list[DocumentRows], list[Any]]:
    """Return the rows of all documents, in parts, and their ids.

    Args:
        encoder: Makes the vectors of tokens.
        senses: The dictionary.
        own_rows: The rows of tokens without senses. New tokens are added.
        documents: A list or iterable of strings, or a dataset.
        text_column: Name of the text column of a dataset.
        ids: The ids. Default: the integers that follow the largest known one.
        known_ids: Ids that are in the index already.

    Raises:
        ValueError: A document is no string or has no tokens, or the ids are not unique, of two kinds, or not as many
            as the documents.
    """
    # Check the ids as far as they are known.
    if ids is None and known_ids and isinstance(known_ids[0], str):
        raise ValueError("the ids of the index are strings: give ids= for the new documents too")
    size = len(documents) if isinstance(documents, Sized) and not isinstance(documents, str) else None
    if isinstance(ids, Sized) and size is not None and len(ids) != size:
        raise ValueError(f"{len(ids)} ids for {size} documents: give one for each")
    given = iter(ids) if ids is not None else count(max(map(int, known_ids), default=-1) + 1)

    # Encode in chunks.
    parts: list[DocumentRows] = []
    new_ids: list[Any] = []
    seen: set[object] = set(known_ids)
    reader = iterate_texts(documents, text_column)
    with tqdm(total=size, desc="Indexing", unit=" documents", leave=False, disable=(size or CHUNK) < 64) as progress:
        while chunk := list(islice(reader, CHUNK)):
            chosen = list(islice(given, len(chunk)))
            check_ids(chosen, [*known_ids[:1], *new_ids[:1]], seen, len(chunk))
            parts.append(encode_documents(encoder, senses, own_rows, chunk, len(new_ids)))
            new_ids += chosen
            progress.update(len(chunk))
    if ids is not None and next(given, None) is not None:
        raise ValueError(f"there are more ids than the {len(new_ids)} documents: give one for each")
    return parts, new_ids


def encode_queries(encoder: TokenEncoder, queries: Iterable[str]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the token ids `[tokens]` and the vectors `[tokens, hidden]` of each query, on the CPU.

    Args:
        encoder: Makes the vectors of tokens.
        queries: The texts of the queries.

    Raises:
        ValueError: A query is no string or has no tokens.
    """
    reader, first = iterate_texts(queries), 0
    while chunk := list(islice(reader, CHUNK)):
        tokenized = encoder.tokenize(chunk)
        for number, row in enumerate(tokenized):
            if not row:
                raise ValueError(f"query {first + number} ({chunk[number]!r:.60}) has no tokens: write some words")
        texts, tokens, vectors = (torch.cat([x.cpu() for x in part]) for part in zip(*encoder.batches(tokenized)))
        order = texts.argsort(stable=True)
        sizes = [len(row) for row in tokenized]
        yield from zip(tokens[order].split(sizes), vectors[order].split(sizes))
        first += len(chunk)


def load_encoder(model: Model, device: torch.device | str | None = None) -> Teacher | SKDStudentModel:
    """Return a teacher or a student.

    Args:
        model: One of them, or a model of transformers, or a name or folder.
        device: Device of a model that is loaded. Default: a GPU if there is one.

    Raises:
        ValueError: See :func:`load_teacher`.
    """
    if isinstance(model, (Teacher, SKDStudentModel)):
        return model
    if isinstance(model, PreTrainedModel):
        return load_teacher(model)
    if (read_json(os.fspath(model), "config.json") or {}).get("model_type") == "skd_student":
        student: SKDStudentModel = AutoModel.from_pretrained(model)
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        student.to(place)  # type: ignore[arg-type]  # transformers' annotation takes `self` for an argument
        return student
    return load_teacher(model, device=device)


def source_of(model: Teacher | SKDStudentModel) -> str:
    """Return the name or the absolute path that a model was loaded from; empty if it is not known."""
    name = str((model.model if isinstance(model, Teacher) else model).name_or_path or "")
    return os.path.abspath(name) if os.path.isdir(name) else name
