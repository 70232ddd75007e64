"""The files of a saved folder: read with care, and written whole or not at all."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers.utils.hub import cached_file, extract_commit_hash

# The folder in which the files of a model are written before they replace others.
SAVING = "_saving"
# Names of weights. A variant has the names `model.VARIANT.safetensors`, `model.VARIANT-00001-of-00002.safetensors` and
# `model.safetensors.index.VARIANT.json`, so that a folder can hold several.
SHARD = r"(-\d{5}-of-\d{5})?"
WEIGHTS = re.compile(rf"model(?P<variant>\.\w+)?{SHARD}\.safetensors")
# Other files of a saved model that would be loaded with, or instead of, the new ones.
REPLACED = re.compile(
    rf"pytorch_model{SHARD}\.bin|pytorch_model\.bin\.index\.json|model\.safetensors\.index\.json"
    r"|tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(txt|json)|merges\.txt"
)
MANIFEST = "manifest.json"
EXPORTED = "onnx/model*.onnx*"  # what was made of the weights
# Other files of a saved model, besides the code.
OTHERS = (
    "config.json",
    "README.md",
    "generation_config.json",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)


def model_files(folder: Path) -> list[str]:
    """Return what is in a folder under the names of files of a saved model, sorted.

    Args:
        folder: The folder, which may not exist.
    """
    known = {*OTHERS, MANIFEST, *(path.name for path in Path(__file__).parent.glob("[!_]*.py"))}
    names = sorted(path.name for path in folder.glob("*"))
    return [name for name in names if name in known or WEIGHTS.fullmatch(name) or REPLACED.fullmatch(name)]


def check_source(source: object) -> str:
    """Check the name of a repository or folder.

    Args:
        source: The name, or the path of the folder.

    Returns:
        The name as a string.

    Raises:
        ValueError: There is no such folder, and no repository can have such a name.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(f"{source!r:.60} is {type(source).__name__}: give a folder, or a name on the Hub")
    name = os.fspath(source)
    if os.path.isfile(name):
        raise ValueError(f"{name} is a file: give the folder that it is in")
    if not os.path.isdir(name):
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise ValueError(
                f"there is no folder {name} here, and it is no name on the Hub, OWNER/NAME, either: check the path"
            ) from error
    return name


def find_file(source: str, name: str, **where: Any) -> Path | None:
    """Return the path of a file in a repository or folder; None if there is none, or if the Hub cannot be reached.

    Args:
        source: Name of the repository, or the folder.
        name: Path of the file inside it.
        where: Arguments of `from_pretrained` that say where files are, such as `revision`.

    Raises:
        OSError: There is no such repository or revision, or the Hub answers with an error.
    """
    path = cached_file(source, name, **where, _raise_exceptions_for_missing_entries=False)
    return Path(path) if path else None


def find_commit(source: str) -> str | None:
    """Return the id of the commit that a model or an adapter is read from; None for a folder outside the Hub's cache.

    Args:
        source: Name of the repository, or the folder.
    """
    path = find_file(source, "config.json") or find_file(source, "adapter_config.json")
    return extract_commit_hash(str(path), None)


def is_unknown(source: str, name: str, revision: str | None = None) -> bool:
    """Return whether the cache of the Hub does not tell if a repository has a file, as the Hub was never asked."""
    return not os.path.isdir(source) and try_to_load_from_cache(source, name, revision=revision) is None


def is_panic(error: BaseException) -> bool:
    """Return whether an error is a panic of code in Rust, whose class is no `Exception` and is not exported."""
    return type(error).__name__ == "PanicException"


@contextmanager
def reading(name: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what libraries raise for a damaged folder, inside a `with` block, into a ValueError that names the folder.

    Args:
        name: The folder or repository that is read.
    """
    try:
        yield
    except (ValueError, OSError, ImportError):
        raise  # says what is wrong
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        message = " ".join(str(error).split())
        raise ValueError(
            f"{name} cannot be loaded ({type(error).__name__}: {message}): it is damaged, or not what its config says"
        ) from error


def read_json_file(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Raises:
        ValueError: It is empty or broken.
        OSError: It cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is broken ({error})") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: The file.

    Raises:
        ValueError: It is empty or broken, or holds something else.
        OSError: It cannot be read.
    """
    content = read_json_file(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is broken (it holds a {type(content).__name__}, not names and values)")
    return content


def write_object(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object to a file. After a crash the file has the old content or the new one.

    Args:
        path: The file; an existing one is replaced.
        content: What to write.
    """
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(json.dumps(dict(content), indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())  # a rename may reach the disk before the content does
    partial.replace(path)


@contextmanager
def replacing(folder: Path, marker: str = "config.json") -> Iterator[Path]:
    """Give a `with` block a new folder to write to. Its files then replace those of a model in another folder.

    The old files may be mapped in memory: they stay as they are until nothing uses them.

    Args:
        folder: The folder of the model; it is created if it does not exist.
        marker: The file without which the model does not load.

    Yields:
        The new folder.
    """
    ready = folder / SAVING
    shutil.rmtree(ready, ignore_errors=True)  # an interruption has left it
    ready.mkdir(parents=True)
    try:
        yield ready
        move_files(ready, folder, marker)
    finally:
        shutil.rmtree(ready, ignore_errors=True)


def move_files(ready: Path, folder: Path, marker: str) -> None:
    """Move all files of a folder into another one, and remove there what is left of a model that they replace.

    The marker goes first and comes last. So there is the old model, the new one, or none that loads.

    Args:
        ready: Where the files are.
        folder: Where they go.
        marker: The file without which the result does not load.

    Raises:
        OSError: A folder is in the place of a file, or the disk has no room. The old model is there if nothing was
            moved.
    """
    names = [path.relative_to(ready) for path in ready.rglob("*") if path.is_file()]
    for name in names:
        if (folder / name).is_dir():
            raise IsADirectoryError(f"{folder / name} is a folder, where a file must go")
        with open(ready / name, "rb") as file:
            os.fsync(file.fileno())
    if Path(marker) in names:  # no marker: only adapters are saved, which need the model that is there
        (folder / marker).unlink(missing_ok=True)
        for path in _outdated(folder, [name.name for name in names]):
            if path.relative_to(folder) not in names and path.is_file():
                path.unlink()
    for name in sorted(names, key=lambda name: (str(name) == marker, name)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (ready / name).replace(folder / name)


def _outdated(folder: Path, names: list[str]) -> list[Path]:
    """Return the files in a folder that do not belong to a new model with these names of files."""
    variants = {match["variant"] for name in names if (match := WEIGHTS.fullmatch(name))}
    found = {path: WEIGHTS.fullmatch(path.name) for path in folder.glob("*")}
    outdated = [path for path, match in found.items() if match and match["variant"] in variants]
    outdated += [folder / f"model.safetensors.index{variant}.json" for variant in variants if variant]
    if variants != {None}:
        return outdated  # the weights without a variant are still current
    outdated += [path for path in found if REPLACED.fullmatch(path.name)]
    if _is_of_a_build(folder / MANIFEST):
        outdated.append(folder / MANIFEST)
    return [*outdated, *folder.glob(EXPORTED)]


def _is_of_a_build(manifest: Path) -> bool:
    try:
        return manifest.is_file() and read_object(manifest).keys() == {"settings", "files"}
    except ValueError:
        return False


def is_unfinished(folder: Path) -> bool:
    """Return whether a folder holds only what an interrupted save has left there."""
    return (folder / SAVING).is_dir() and not (folder / "config.json").exists()
