"""The manifest of a finished folder: with which settings its files were made, and what they contain.

A folder may come from elsewhere. So nothing in a manifest is believed before :func:`read_manifest` has checked it.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..models.files import MANIFEST, read_object, write_object

TEMPLATES = "additional_chat_templates"  # the only folder whose files may be named: transformers writes it
CHUNK = 1 << 24  # bytes that are hashed at a time


@dataclass(frozen=True)
class Manifest:
    """What a build has left in its folder.

    Attributes:
        settings: The settings of the build, and the digest of its texts.
        files: Size in bytes and SHA-256 of each file, by its path in the folder. The card, which may be edited, is
            left out.
    """

    settings: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, folder: Path, settings: Mapping[str, Any]) -> "Manifest":
        """Describe all files of a folder but its card.

        Args:
            folder: The folder.
            settings: The settings of the build.
        """
        paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        paths.pop("README.md", None)
        return cls(settings, {name: file_entry(path) for name, path in sorted(paths.items())})

    def write(self, folder: Path) -> None:
        """Write the manifest to a folder, whole or not at all."""
        write_object(folder / MANIFEST, asdict(self))

    def changed_file(self, folder: Path) -> Path | None:
        """Return a file of a folder that is missing or not as described; None if there is none."""
        for name, entry in self.files.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != entry["size"] or file_entry(path) != entry:
                return path
        return None


def read_manifest(folder: Path, *, allow_links: bool = False) -> Manifest | None:
    """Read and check the manifest of a folder.

    Args:
        folder: The folder.
        allow_links: Whether its files may be links, as in a cache. Files that are to be replaced may not.

    Returns:
        The manifest; None if there is none.

    Raises:
        ValueError: The manifest is broken, or names something else than files of its folder.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    content = read_object(path)
    settings, files = content.get("settings"), content.get("files")
    if not isinstance(settings, dict) or not isinstance(files, dict):
        raise ValueError(f"{path} is broken (it has no settings or no files)")
    for name, entry in files.items():
        _check_name(path, name, allow_links)
        is_entry = isinstance(entry, dict) and entry.keys() == {"size", "sha256"}
        if not (
            is_entry
            and type(entry["size"]) is int
            and entry["size"] >= 0
            and re.fullmatch("[0-9a-f]{64}", str(entry["sha256"]))
        ):
            raise ValueError(f"{path} is broken (what it says of {name!r} is no size and SHA-256)")
    return Manifest(settings, files)


def file_entry(path: Path) -> dict[str, Any]:
    """Return the size of a file in bytes and its SHA-256, as in a manifest.

    Args:
        path: The file.
    """
    digest = sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


def _check_name(manifest: Path, name: str, allow_links: bool) -> None:
    """Raise a ValueError unless a name is that of a regular file in the folder of a manifest, or of no file."""
    bare = name.removeprefix(f"{TEMPLATES}/")
    is_bare = bare not in ("", ".", "..") and not set(bare) & {"/", "\\", ":", "\0"}
    path = manifest.parent / name
    is_link = path.is_symlink() or (manifest.parent / TEMPLATES).is_symlink()
    if not is_bare or (is_link and not allow_links) or (path.exists() and not path.is_file()):
        raise ValueError(f"{manifest} is broken (it names {name!r}, which is no file of its folder)")
