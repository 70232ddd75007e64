"""The folder of a build: who works in it, with which settings, and how what is finished, a dictionary or a data set, gets there.

- `building-0.lock`, held by the first process while a build runs, and so on;
- `building/`, the stages of an unfinished build, and its `settings.json`;
- `config.json` and so on, the finished dictionary; `manifest.json` lists its files.

Each kind has a marker, the file without which it does not load: it comes last and goes first.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from accelerate import PartialState
from filelock import FileLock, Timeout

TEXT_SETTINGS = ("tokenizer", "teacher_tokenizer", "max_length", "truncation", "prompt", "sensedict_hf")
MANIFEST = "manifest.json"
MARKERS = {"dictionary": "config.json", "data set": "state.json"}
CHUNK = 1 << 24  # bytes that are hashed at a time


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other builds and distillations out of a folder, for all processes of this one. The locks are the operating system's: each ends
    with its process, however that ends, so that a process that has outlived its build is noticed too.

    Raises:
        ValueError: another works in the folder.
    """
    state = PartialState()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"building-{state.process_index}.lock"
    lock = FileLock(path)
    try:
        if state.is_main_process:
            for other in folder.glob("building-*.lock"):
                with FileLock(other).acquire(timeout=0):
                    other.unlink()  # of a process that is no more
            lock.acquire(timeout=0)
        state.wait_for_everyone()
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process is working in {folder}: wait for it, or give another folder") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release(force=True)


def discard(stages: Path) -> None:
    """Removes the stages of a build; what is left of them after an interruption will not be taken for a build."""
    (stages / "settings.json").unlink(missing_ok=True)
    shutil.rmtree(stages, ignore_errors=True)


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What two settings differ in, in words; empty if in nothing."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return "; ".join(f"{name} was {before.get(name)}, is {now.get(name)}" for name in names)


def begin_build(
    folder: Path, settings: dict[str, Any], overwrite: bool, kind: str = "dictionary", *, afresh: bool = False
) -> Path:
    """Makes the folder of the stages, or finds the one that an interrupted build with the same settings has left. As long as there is
    nothing but tokenized text, only what that depends on must be the same.

    Raises:
        ValueError: the folder holds what is finished of another kind, an unfinished build with other settings, or files of other
            origin that would be replaced, and `overwrite` is not set.
    """
    stages = folder / "building"
    path = stages / "settings.json"
    others = [other for other, marker in MARKERS.items() if other != kind and (folder / marker).is_file()]
    if others and not overwrite:
        raise ValueError(f"{folder} holds a {others[0]}: give the {kind} another folder, or overwrite")
    if afresh:
        discard(stages)
    if path.is_file():
        before = json.loads(path.read_text())
        only_text = {item.name for item in stages.iterdir()} <= {"corpus", "settings.json", "settings.json.partial"}
        names = TEXT_SETTINGS if only_text else settings
        changed = differences(before, {**before, **{name: settings[name] for name in names}})
        if changed and not overwrite:
            raise ValueError(
                f"{folder} holds an unfinished build with other settings: {changed}; give the same, another folder, or overwrite"
            )
        if changed:
            discard(stages)
    else:
        discard(stages)
        taken = [name for name in ("model.safetensors", "README.md", "tokenizer.json") if (folder / name).exists()]
        if taken and not (folder / MANIFEST).exists() and not overwrite:
            raise ValueError(
                f"{folder} holds a {taken[0]} that no build has put there: give another folder, or overwrite"
            )
    stages.mkdir(exist_ok=True)
    partial = stages / "settings.json.partial"
    partial.write_text(json.dumps(settings, indent=2))
    partial.replace(path)  # whole or not at all
    return stages


def finished_build(folder: Path, kind: str = "dictionary", *, check: bool = True) -> dict[str, Any] | None:
    """The manifest of a finished dictionary or data set, if there is one.

    Args:
        check: compare its files with it.

    Raises:
        ValueError: a file was changed since; or there is one without a manifest.
    """
    if not (folder / MARKERS[kind]).is_file():
        return None
    if not (folder / MANIFEST).is_file():
        what = "model" if kind == "dictionary" else kind
        raise ValueError(f"{folder} holds a {what} that no build has put there: give another folder, or overwrite")
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, entry in manifest["files"].items() if check else ():
        if not (folder / name).is_file() or describe(folder / name) != entry:
            raise ValueError(
                f"{folder / name} is not the file that the build has written: give another folder, or overwrite"
            )
    return manifest


def publish(folder: Path, settings: dict[str, Any], kind: str = "dictionary") -> None:
    """Puts a manifest beside the files of `building/ready` and moves them into the folder, the marker last: without it there is
    nothing to load. Can be repeated from the start after an interruption, together with the writing of those files."""
    stages, marker = folder / "building", MARKERS[kind]
    ready = stages / "ready"
    names = sorted(path.name for path in ready.iterdir())
    manifest = {"settings": settings, "files": {name: describe(ready / name) for name in names}}
    (ready / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    (folder / marker).unlink(missing_ok=True)  # of what is overwritten
    if (folder / MANIFEST).is_file():
        for name in json.loads((folder / MANIFEST).read_text())["files"]:
            (folder / name).unlink(missing_ok=True)
        (folder / MANIFEST).unlink()
    for name in sorted([*names, MANIFEST], key=lambda name: (name == marker, name)):
        (ready / name).replace(folder / name)
    discard(stages)


def describe(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file."""
    digest = sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}
