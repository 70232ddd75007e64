"""The files of a saved folder: read with care, and written whole or not at all."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
    except Exception as error:
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
