"""The folder of a sense index: how it is written, checked and read.

    config.json                      what the index is, and which of the other files belong to it; written last
    documents-DIGEST.safetensors     rows, offsets and ids of the documents, the rows that the index has added, and
                                     vectors that its model makes
    senses/                          the dictionary, with its tokenizer
    parts/                           documents of a build that is not finished
    building-0.lock, ...             locks of the processes of a build
    saving.lock                      lock of a process that saves

A new version of the documents gets a new name. So an interruption leaves the old index as it was.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..models.arguments import check_kind, check_unicode
from ..models.files import read_object, write_object
from ..models.fingerprints import digest_tensors
from ..models.loading import load_senses
from ..models.modeling_sense_embedding import SenseEmbeddingModel
from .document_rows import DocumentRows, rows_dtype
from .own_rows import OwnRows
from .parts import Part, write_tensors

if TYPE_CHECKING:
    from .index import SenseIndex

KIND = "sense_index"
PARTS = "parts"  # folder of the parts of a build that is not finished
DOCUMENTS = re.compile(r"documents-[0-9a-f]{32}\.safetensors")
PART = re.compile(r"\d{9}\.safetensors(\.partial)?")
# Files of a build or a first save that was interrupted.
UNFINISHED = re.compile(rf"({DOCUMENTS.pattern}(\.partial)?|building-\d+\.lock|saving\.lock|config\.json\.partial)")
ATTEMPTS = 5  # to read an index that is being replaced
FORMAT = 1
CHUNK = 1 << 20  # numbers that are checked at a time
# The fields of config.json.
FIELDS = {
    "kind": str,
    "format": int,
    "documents": str,
    "num_documents": int,
    "num_entries": int,
    "num_own_rows": int,
    "ids": str,
    "model": str,
    "senses_fingerprint": str,
    "sensedict_version": str,
}


def read_index_config(folder: Path) -> dict[str, Any]:
    """Read and check the manifest of an index.

    Args:
        folder: The folder of the index.

    Raises:
        ValueError: The folder holds no finished index, or the manifest was changed.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no finished sense index (there is no config.json): build or save it again")
    try:
        manifest = read_object(path)
    except ValueError as error:
        raise ValueError(f"{error}: build the index again") from error
    if manifest.get("kind") != KIND:
        raise ValueError(f"{folder} holds something else than a sense index: give the folder of one")
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"the index in {folder} has format {manifest.get('format')}, this version reads {FORMAT}: use the version "
            "of sensedict_hf that wrote it, or build the index again"
        )
    wrong = sorted(name for name, kind in FIELDS.items() if type(manifest.get(name)) is not kind)
    wrong += sorted(manifest.keys() - FIELDS.keys())
    if wrong:
        raise ValueError(f"{path} is damaged (wrong fields: {', '.join(wrong)}): build the index again")
    if not DOCUMENTS.fullmatch(manifest["documents"]):
        raise ValueError(f"{path} names a file outside of its folder: build the index again")
    return manifest


def read_index(folder: Path) -> tuple[SenseEmbeddingModel, Part, str, Tensor | None]:
    """Read an index. Its documents stay mapped from the file.

    Args:
        folder: The folder of the index.

    Returns:
        The dictionary, the documents, the name of the model, and vectors that it makes, if they were kept.

    Raises:
        ValueError: The folder holds no finished index, or one that is damaged.
    """
    manifest = read_index_config(folder)
    senses = load_senses(folder / "senses")
    if senses.fingerprint() != manifest["senses_fingerprint"]:
        raise ValueError(f"the dictionary in {folder / 'senses'} was changed: build the index again")
    for _ in range(ATTEMPTS):
        if (folder / manifest["documents"]).is_file():
            break
        manifest = read_index_config(folder)  # a save has replaced the documents in the meantime
    tensors = read_documents(folder, manifest, senses.config.num_senses, senses.config.hidden_size)
    vocab_size, own_tokens = senses.config.vocab_size, tensors["own_tokens"]
    if len(own_tokens.unique()) < len(own_tokens) or ((own_tokens < 0) | (own_tokens >= vocab_size)).any():
        raise ValueError(f"{folder / manifest['documents']} has rows of wrong tokens: build the index again")
    documents = DocumentRows(tensors["rows"].numpy(), tensors["offsets"].numpy())
    own_rows = OwnRows.of(tensors["own_tokens"], tensors["own_vectors"])
    try:
        content = Part(documents, own_rows, unpack_ids(tensors))
    except UnicodeDecodeError as error:
        raise ValueError(f"{folder / manifest['documents']} has broken ids: build the index again") from error
    if len(set(content.ids)) < len(documents):
        raise ValueError(f"{folder / manifest['documents']} has one id for several documents: build the index again")
    return senses, content, manifest["model"], tensors.get("probe")


def read_documents(folder: Path, manifest: Mapping[str, Any], num_senses: int, hidden_size: int) -> dict[str, Tensor]:
    """Open the documents of an index as memory-mapped tensors, and check their shapes.

    Args:
        folder: The folder of the index.
        manifest: Its manifest.
        num_senses: Senses of its dictionary.
        hidden_size: Width of the senses.

    Raises:
        ValueError: The file is missing, does not fit the manifest, or has a number outside its range.
    """
    path = folder / manifest["documents"]
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {path} ({error}): build the index again") from error
    documents, own = manifest["num_documents"], manifest["num_own_rows"]
    short = rows_dtype(num_senses + own) is np.uint16
    expected = {
        "rows": (torch.uint16 if short else torch.int32, (manifest["num_entries"],)),
        "offsets": (torch.int64, (documents + 1,)),
        "own_tokens": (torch.int64, (own,)),
        "own_vectors": (torch.float32, (own, hidden_size)),
    }
    if manifest["ids"] == "integers":
        expected["ids"] = (torch.int64, (documents,))
    else:
        expected["id_ends"] = (torch.int64, (documents,))
        ends = tensors.get("id_ends", torch.zeros(0, dtype=torch.int64))
        expected["id_bytes"] = (torch.uint8, (int(ends[-1]) if len(ends) else 0,))
        if bool((ends.diff(prepend=ends.new_zeros(1)) < 0).any()):
            raise ValueError(f"{path} has broken ids: build the index again")
    if "probe" in tensors:
        expected["probe"] = (torch.float32, (len(tensors["probe"]), hidden_size))
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    offsets = tensors.get("offsets")
    if found != expected or offsets is None or offsets[0] != 0 or offsets[-1] != manifest["num_entries"]:
        raise ValueError(f"{path} does not fit {folder / 'config.json'}: build the index again")
    if not all(bool((offsets[1:][part] > offsets[:-1][part]).all()) for part in _chunks(documents)):
        raise ValueError(f"{path} has documents without tokens: build the index again")
    rows = tensors["rows"].numpy()
    if len(rows) and not 0 <= rows.min() <= rows.max() < num_senses + own:
        raise ValueError(f"{path} has rows outside the table, which has {num_senses + own}: build the index again")
    # The first row of a document may be below the row before it, which is of another document.
    falls = sum(int((rows[1:][part] <= rows[:-1][part]).sum()) for part in _chunks(len(rows) - 1))
    begins = offsets[1:-1].numpy()
    expected_falls = sum(int((rows[begins[part]] <= rows[begins[part] - 1]).sum()) for part in _chunks(len(begins)))
    if falls != expected_falls:
        raise ValueError(f"{path} has documents whose rows do not ascend: build the index again")
    if not all(bool(tensors[name].isfinite().all()) for name in ("own_vectors", "probe") if name in tensors):
        raise ValueError(f"{path} has rows with values that are not finite: build the index again")
    return tensors


def _chunks(length: int) -> list[slice]:
    """Cut a range into parts that need little memory."""
    return [slice(begin, min(begin + CHUNK, length)) for begin in range(0, length, CHUNK)]


def write_index(folder: Path, content: Part, model: str, probe: Tensor | None, senses: SenseEmbeddingModel) -> None:
    """Write the dictionary, unless it is there, then the documents, and the manifest last.

    Processes that save into one folder do so one after the other.

    Args:
        folder: The folder of the index.
        content: The documents.
        model: Name of the model, or its path from the folder.
        probe: Vectors that the model makes, `[tokens, hidden]`, if they are known.
        senses: The dictionary.

    Raises:
        ValueError: The folder holds an index of another dictionary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "saving.lock")
    with lock:
        try:
            _write_index(folder, content, model, probe, senses)
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)


def _write_index(folder: Path, content: Part, model: str, probe: Tensor | None, senses: SenseEmbeddingModel) -> None:
    senses_fingerprint = senses.fingerprint()
    is_index = (folder / "config.json").is_file()
    if is_index and read_index_config(folder)["senses_fingerprint"] != senses_fingerprint:
        raise ValueError(f"{folder} holds an index of another dictionary: give a new folder, or remove it first")
    if not (is_index and (folder / "senses" / "config.json").is_file()):
        senses.save_pretrained(folder / "senses")
    documents, own_rows, ids = content
    tensors = {
        "rows": torch.from_numpy(np.ascontiguousarray(documents.rows)),
        "offsets": torch.from_numpy(documents.offsets),
        "own_tokens": own_rows.tokens,
        "own_vectors": own_rows.vectors,
        **({} if probe is None else {"probe": probe}),
        **pack_ids(ids),
    }
    name = f"documents-{digest_tensors(KIND, tensors)}.safetensors"
    manifest = {
        "kind": KIND,
        "format": FORMAT,
        "documents": name,
        "num_documents": len(documents),
        "num_entries": len(documents.rows),
        "num_own_rows": len(own_rows),
        "ids": "strings" if ids and isinstance(ids[0], str) else "integers",
        "model": model,
        "senses_fingerprint": senses_fingerprint,
        "sensedict_version": version("sensedict_hf"),
    }
    write_tensors(folder / name, tensors, {"format": "pt"})
    write_object(folder / "config.json", manifest)
    for old in folder.iterdir():
        if old.name != name and DOCUMENTS.fullmatch(old.name.removesuffix(".partial")):
            old.unlink()


def remove_parts(folder: Path) -> None:
    """Remove the parts of a finished build, and no other files."""
    parts = folder / PARTS
    if parts.is_dir():
        for path in parts.iterdir():
            if PART.fullmatch(path.name):
                path.unlink()
        if not any(parts.iterdir()):
            parts.rmdir()


def check_target(folder: Path, senses: SenseEmbeddingModel | None = None, new: bool = False) -> None:
    """Check that an index may be saved in a folder: it is new or empty, or holds an index.

    Args:
        folder: The folder.
        senses: The dictionary, if it is known already.
        new: Whether it must not hold a finished index.

    Raises:
        ValueError: It holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    config = folder / "config.json"
    is_index = config.is_file() and f'"kind": "{KIND}"' in config.read_text(encoding="utf-8", errors="replace")
    is_unfinished = not config.exists() and all(_is_ours(path, senses) for path in folder.iterdir())
    if not is_index and not is_unfinished:
        raise ValueError(f"{folder} is not empty and holds no sense index: give a new folder")
    # With parts it is a build whose end was interrupted: they are compared, and removed.
    if is_index and new and not (folder / PARTS).is_dir():
        raise ValueError(f"{folder} holds an index already: give a new folder, or remove it first")


def _is_ours(path: Path, senses: SenseEmbeddingModel | None) -> bool:
    """Return whether a build or a first save that was interrupted has left a file or folder."""
    if path.name == PARTS and path.is_dir():
        return all(PART.fullmatch(part.name) for part in path.iterdir())
    if path.name == "senses" and path.is_dir():
        # Another finished dictionary is not ours.
        is_finished = (path / "config.json").exists()
        return senses is None or not is_finished or load_senses(path).fingerprint() == senses.fingerprint()
    return bool(UNFINISHED.fullmatch(path.name))


def pack_ids(ids: Sequence[str] | Sequence[int]) -> dict[str, Tensor]:
    """Return ids as tensors.

    Args:
        ids: Strings or integers.
    """
    if not ids or not isinstance(ids[0], str):
        return {"ids": torch.tensor(ids, dtype=torch.int64)}
    encoded = [str(name).encode() for name in ids]
    ends = torch.tensor([len(name) for name in encoded]).cumsum(0)
    return {"id_bytes": torch.from_numpy(np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()), "id_ends": ends}


def unpack_ids(tensors: Mapping[str, Tensor]) -> list[str] | list[int]:
    """Return the ids in tensors from :func:`pack_ids`.

    Args:
        tensors: The tensors.
    """
    if "ids" in tensors:
        numbers: list[int] = tensors["ids"].tolist()
        return numbers
    ends: NDArray[np.int64] = tensors["id_ends"].numpy()
    text, begins = tensors["id_bytes"].numpy().tobytes(), np.append(0, ends[:-1])
    return [text[begin:end].decode() for begin, end in zip(begins.tolist(), ends.tolist())]


def check_ids(ids: Sequence[object], others: Sequence[object], seen: set[object], size: int) -> None:
    """Check the ids of some documents, and add them to those that were seen.

    Args:
        ids: The ids.
        others: Ids that are in the index already; the first one tells their kind.
        seen: All ids that are in the index or were checked before.
        size: Number of documents.

    Raises:
        ValueError: They are too few, of two kinds, or not unique.
    """
    if len(ids) < size:
        raise ValueError("there are fewer ids than documents: give one for each")
    kind = str if isinstance(next(chain(others, ids), 0), str) else int
    for name in ids:
        if type(name) is not kind:
            raise ValueError(f"id {name!r} is a {type(name).__name__}: ids are all strings or all integers")
        if isinstance(name, int) and not -(2**63) <= name < 2**63:
            raise ValueError(f"id {name} does not fit into 64 bits: give smaller integers, or strings")
        if isinstance(name, str):
            check_unicode(name, "an id")
        if name in seen:
            raise ValueError(f"id {name!r} is given twice: ids must differ")
        seen.add(name)


def plain_id(name: Any) -> Any:
    """Return an id without the types of numpy."""
    return name.item() if isinstance(name, np.generic) else name


def check_known(ids: Iterable[object], known: Iterable[object]) -> set[object]:
    """Return the ids of some documents as a set, if an index has all of them.

    Args:
        ids: The ids.
        known: All ids of the index.

    Raises:
        ValueError: There is no document with one of the ids.
    """
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise ValueError(f"ids is {ids!r:.40}: pass a list")
    listed = [plain_id(name) for name in ids]
    for name in listed:
        if type(name) not in (str, int):
            raise ValueError(f"id {name!r:.40} is a {type(name).__name__}: ids are strings or integers")
    found: set[object] = set(listed)
    if unknown := found - set(known):
        more = f" and {len(unknown) - 1} more that were given" if len(unknown) > 1 else ""
        raise ValueError(f"the index has no document {next(iter(unknown))!r}{more}: check the ids")
    return found


def check_mergeable(indexes: Sequence["SenseIndex"]) -> "SenseIndex":
    """Return the first of some indexes if they can be merged.

    Args:
        indexes: The indexes.

    Raises:
        ValueError: There are none, the dictionaries differ, or an id is in two of them.
    """
    check_kind("indexes", indexes, (list, tuple), "a list of indexes")
    if not indexes:
        raise ValueError("there are no indexes to merge: give at least one")
    first, seen = indexes[0], set[object]()
    some: list[Any] = next((index.ids[:1] for index in indexes if index.ids), [])
    for index in indexes:
        if index.senses.fingerprint() != first.senses.fingerprint():
            raise ValueError("the indexes have different dictionaries: build them with one")
        check_ids(index.ids, some, seen, len(index))
    return first
