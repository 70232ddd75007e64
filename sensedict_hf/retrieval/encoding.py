"""Documents as rows, queries as vectors, and the models that encode both."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from ..data import iterate_texts
from ..models.checkpoints import read_json
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.modeling_skd_student import SKDStudentModel
from ..models.teachers import Teacher, load_teacher
from .document_rows import DocumentRows
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
