"""Documents as rows, queries as vectors, and the models that encode both."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, Sized
from hashlib import sha256
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel
from transformers.utils.logging import tqdm

from ..data import Texts, iterate_texts
from ..models.arguments import check_kind
from ..models.checkpoints import read_json
from ..models.fingerprints import describe_model, digest_tensors
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.modeling_skd_student import SKDStudentModel
from ..models.teachers import Teacher, load_teacher
from ..processes import process_state
from .document_rows import DocumentRows
from .index_files import PART, check_ids, plain_id
from .own_rows import OwnRows
from .parts import Part, other_build, read_part, write_part
from .token_vectors import TokenEncoder

# What encodes documents and queries.
Model: TypeAlias = str | os.PathLike[str] | PreTrainedModel | Teacher | SKDStudentModel
CHUNK = 1024  # texts that are tokenized and sorted by length at a time


def encode_documents(encoder: TokenEncoder, senses: SenseEmbeddingModel, texts: list[str], first: int = 0) -> Part:
    """Return some documents as a part of an index, without ids.

    Args:
        encoder: Makes the vectors of tokens.
        senses: The dictionary.
        texts: The documents.
        first: Number of the first document, for messages.

    Raises:
        ValueError: A document has no tokens.
    """
    tokenized = tokenize_documents(encoder, dict(enumerate(texts, first)))
    own_rows, num_senses = OwnRows(senses.config.hidden_size), senses.config.num_senses
    documents, rows, offsets = [], [], senses.offsets.cpu()
    for batch in encoder.batches(tokenized):
        tokens = batch.token_ids
        vectors = batch.vectors.to(senses.device)
        sense_ids = senses(tokens[None].to(senses.device), vectors[None], assignment="none").sense_ids[0].cpu()
        found = offsets[tokens] + sense_ids
        is_missing = sense_ids < 0
        if is_missing.any():
            found[is_missing] = num_senses + own_rows.take(tokens[is_missing], vectors.cpu()[is_missing])
        documents.append(batch.texts)
        rows.append(found)
    return Part(DocumentRows.of(torch.cat(documents).numpy(), torch.cat(rows).numpy(), len(texts)), own_rows, [])


def tokenize_documents(encoder: TokenEncoder, documents: Mapping[int, str]) -> list[list[int]]:
    """Tokenize documents.

    Args:
        encoder: Makes the vectors of tokens.
        documents: The texts, by the numbers of the documents.

    Raises:
        ValueError: A document has no tokens.
    """
    tokenized = encoder.tokenize([*documents.values()])
    for (number, text), row in zip(documents.items(), tokenized):
        if not row:
            raise ValueError(f"document {number} ({text!r:.60}) has no tokens: remove it, as nothing can find it")
    return tokenized


def encode_corpus(
    encoder: TokenEncoder,
    senses: SenseEmbeddingModel,
    documents: Texts,
    text_column: str,
    ids: Iterable[str] | Iterable[int] | None,
    known_ids: Sequence[str] | Sequence[int] = (),
    folder: Path | None = None,
) -> Iterator[Part]:
    """Yield all documents, in parts.

    Args:
        encoder: Makes the vectors of tokens.
        senses: The dictionary.
        documents: A list or iterable of strings, or a dataset.
        text_column: Name of the text column of a dataset.
        ids: The ids. Default: the integers that follow the largest known one.
        known_ids: Ids that are in the index already.
        folder: Where parts are kept. Parts that are there are not encoded again. Processes that were launched together
            share the work.

    Raises:
        ValueError: A document is no string or has no tokens, or the ids are not unique, of two kinds, or not as many
            as the documents, or a part in the folder is of other documents, or of another model or dictionary.
    """
    # Check the ids as far as they are known.
    if ids is None and known_ids and isinstance(known_ids[0], str):
        raise ValueError("the ids of the index are strings: give ids= for the new documents too")
    size = len(documents) if isinstance(documents, Sized) and not isinstance(documents, str) else None
    if isinstance(ids, Sized) and size is not None and len(ids) != size:
        raise ValueError(f"{len(ids)} ids for {size} documents: give one for each")
    if isinstance(ids, str):
        raise ValueError(f"ids is one string ({ids!r:.40}): pass a list with one id for each document")
    if isinstance(ids, (Set, Mapping)):
        raise ValueError(f"ids is a {type(ids).__name__}: pass a list, in the order of the documents")
    if ids is not None:
        check_kind("ids", ids, Iterable, "a list of strings or integers")
    if isinstance(ids, Sized):  # before any document is encoded
        check_ids([plain_id(one) for one in ids], known_ids[:1], set(known_ids), len(ids))
    if size is not None:  # a document without tokens should be found now, and not after a night
        texts = enumerate(iterate_texts(documents, text_column))
        tokenize_documents(encoder, {number: text for number, text in texts if not text.strip()})
    given = iter(ids) if ids is not None else count(max(map(int, known_ids), default=-1) + 1)
    origin = "" if folder is None else parts_digest(encoder, senses)

    # Encode in chunks. Of those in a folder, each process makes its share.
    first, kind, seen, made = 0, list[Any](known_ids[:1]), set[object](known_ids), list[tuple[Path, str, list[Any]]]()
    reader, state = iterate_texts(documents, text_column), process_state()
    with tqdm(total=size, desc="Indexing", unit=" documents", leave=False, disable=(size or CHUNK) < 64) as progress:
        while chunk := list(islice(reader, CHUNK)):
            taken = islice(given, len(chunk))
            chosen: list[Any] = [plain_id(one) for one in taken]
            check_ids(chosen, kind, seen, len(chunk))
            kind = kind or chosen[:1]
            if folder is None:
                yield encode_documents(encoder, senses, chunk, first)._replace(ids=chosen)
            else:
                path = folder / f"{first:09d}.safetensors"
                digest = sha256(json.dumps([origin, chunk, chosen]).encode()).hexdigest()
                if path.is_file():
                    read_part(path, digest)  # which checks it
                elif len(made) % state.num_processes == state.process_index:
                    write_part(path, encode_documents(encoder, senses, chunk, first), digest)
                made.append((path, digest, chosen))
            first += len(chunk)
            progress.update(len(chunk))
    if ids is not None and next(given, None) is not None:
        raise ValueError(f"there are more ids than the {first} documents: give one for each")
    state.wait_for_everyone()
    names = {path.name for path, *_ in made}
    found = () if folder is None else (path.name for path in folder.glob("*") if PART.fullmatch(path.name))
    if folder is not None and any(name.removesuffix(".partial") not in names for name in found):
        raise other_build(folder)
    for path, digest, chosen in made:
        yield read_part(path, digest)._replace(ids=chosen)


def parts_digest(encoder: TokenEncoder, senses: SenseEmbeddingModel) -> str:
    """Return a digest of a model and a dictionary, and of the settings that change a part."""
    model = encoder.model.model if isinstance(encoder.model, Teacher) else encoder.model
    prompt = [encoder.before, encoder.after, encoder.max_length, encoder.batch_size]
    return digest_tensors(json.dumps([describe_model(model), prompt, senses.fingerprint()]), model.state_dict())


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


def query_vectors(encoder: TokenEncoder, queries: str | Iterable[str]) -> Iterator[Tensor]:
    """Yield the vectors of one query or of many, see :func:`encode_queries`."""
    for _, vectors in encode_queries(encoder, [queries] if isinstance(queries, str) else queries):
        yield vectors


def load_encoder(
    model: Model, device: torch.device | str | None = None, trust_remote_code: bool = False
) -> Teacher | SKDStudentModel:
    """Return a teacher or a student.

    Args:
        model: One of them, or anything that :func:`load_teacher` takes.
        device: Device of a model that is loaded. Default: a GPU if there is one.
        trust_remote_code: Whether to run Python code that comes with a model that is loaded.

    Raises:
        ValueError: See :func:`load_teacher`.
    """
    if isinstance(model, (Teacher, SKDStudentModel)):
        return model
    if not isinstance(model, (str, os.PathLike)):
        return load_teacher(model)
    if (read_json(os.fspath(model), "config.json") or {}).get("model_type") == "skd_student":
        student: SKDStudentModel = AutoModel.from_pretrained(model, trust_remote_code=trust_remote_code)
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        student.to(place)  # type: ignore[arg-type]  # transformers' annotation takes `self` for an argument
        return student
    return load_teacher(model, device=device, trust_remote_code=trust_remote_code)
