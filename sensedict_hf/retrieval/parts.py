"""Parts of an index: documents, with rows of their own for the tokens that the dictionary has no senses for."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .document_rows import DocumentRows
from .own_rows import OwnRows


class Part(NamedTuple):
    """Some documents of an index.

    Attributes:
        documents: The documents. Rows after the senses of the dictionary are the own rows of the part.
        own_rows: Rows of tokens without senses.
        ids: The ids of the documents.
    """

    documents: DocumentRows
    own_rows: OwnRows
    ids: list[Any]


def join_parts(parts: Iterable[Part], num_senses: int, own_rows: OwnRows) -> Part:
    """Join parts.

    Args:
        parts: The parts. They are read one after the other.
        num_senses: Senses of the dictionary.
        own_rows: The rows that all documents share in the end. Rows of further tokens are added.
    """
    found, ids = [], list[Any]()
    for part in parts:
        numbers = num_senses + own_rows.absorb(part.own_rows).numpy()
        documents = part.documents
        # Most parts have no own rows, and their documents stay as they are.
        if len(numbers):
            documents = documents.renumber(np.append(np.arange(num_senses), numbers))
        found.append(documents)
        ids += part.ids
    return Part(DocumentRows.join(found, num_senses + len(own_rows)), own_rows, ids)


def write_part(path: Path, part: Part, digest: str) -> None:
    """Write a part without its ids. An interruption leaves no half of it.

    Args:
        path: The file.
        part: The part.
        digest: A digest of all that the part was made of.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    documents = part.documents
    rows, offsets = torch.from_numpy(documents.rows), torch.from_numpy(documents.offsets)
    write_tensors(path, {"rows": rows, "offsets": offsets, **part.own_rows.tensors()}, {"digest": digest})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a .safetensors file. After a crash the whole file is there, or none.

    Args:
        path: The file.
        tensors: What it holds.
        metadata: Further strings.
    """
    partial = path.with_name(f"{path.name}.partial")
    save_file(dict(tensors), partial, metadata=metadata)
    with open(partial, "rb") as file:
        os.fsync(file.fileno())  # a rename may reach the disk before the content does
    partial.replace(path)


def read_part(path: Path, digest: str) -> Part:
    """Read a part without its ids.

    Args:
        path: The file.
        digest: A digest of all that the part should be made of.

    Raises:
        ValueError: The file is damaged, or the part was made of something else.
    """
    try:
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("digest")
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {path} ({error}): remove it and build again") from error
    if found != digest:
        raise other_build(path.parent)
    documents = DocumentRows(tensors["rows"].numpy(), tensors["offsets"].numpy())
    return Part(documents, OwnRows.from_tensors(tensors), [])


def other_build(folder: Path) -> ValueError:
    """Return the error for a folder of parts that were made of something else."""
    return ValueError(
        f"{folder} has an unfinished build of other texts, or with another model, dictionary or batch size: give a "
        "new folder, or remove it first"
    )
