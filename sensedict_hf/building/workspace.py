"""The folder of a build.

A folder holds:

- `building-0.lock`, `building-1.lock`, ...: one lock for each process while a build runs.
- `building/`: the stages of an unfinished build, that is the files that they leave, and its `settings.json`.
- `building.removed/`: stages whose removal was interrupted.
- `config.json` and so on: the finished dictionary. `manifest.json` lists its files and settings.

Each kind of result has a marker: a file without which it does not load. The marker is written last and removed first.
"""

import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..models.files import MANIFEST, model_files, move_files, read_object, write_object
from ..processes import locked
from .manifest import Manifest, read_manifest

# A build that has only read the texts so far continues if these settings are the same; the others may change.
TEXT_SETTINGS = ("tokenizer", "teacher_tokenizer", "max_length", "truncation", "prompt", "sensedict_hf")
REMOVED = "building.removed"
MARKERS = {"dictionary": "config.json", "dataset": "state.json"}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe how two sets of settings differ.

    Args:
        before: The earlier settings.
        now: The new settings.

    Returns:
        The differences as text for an error message, such as `seed was 0, is 1`; empty if there are none.
    """
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return "; ".join(f"{name} was {before.get(name)}, is {now.get(name)}" for name in names)


@dataclass(frozen=True)
class BuildFolder:
    """The folder in which one dictionary or dataset is built.

    Attributes:
        path: The folder.
        kind: What is built: `dictionary` or `dataset`.
        settings: The settings as they are written to `settings.json` and `manifest.json`. Empty for a folder that is
            only read.
        overwrite: Whether to replace what was built with other settings, and files that no build has written.
    """

    path: Path
    kind: str = "dictionary"
    settings: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False

    @property
    def stages(self) -> Path:
        """The folder of an unfinished build."""
        return self.path / "building"

    @property
    def is_unfinished(self) -> bool:
        """Whether there are stages of an unfinished build."""
        return (self.stages / "settings.json").is_file()

    @property
    def ready(self) -> Path:
        """The folder of finished files that :meth:`publish` moves."""
        return self.stages / "ready"

    def locked(self) -> AbstractContextManager[None]:
        """Return a context that locks the folder, see :func:`locked`."""
        return locked(self.path)

    def begin(self, *, afresh: bool = False) -> None:
        """Create the folder of the stages, or keep what an interrupted build with the same settings has left there.

        Args:
            afresh: Whether to discard an interrupted build even if its settings are the same.

        Raises:
            ValueError: Without `overwrite`: the folder holds a finished result of another kind, an unfinished build
                with other settings, or files that no build has written.
        """
        # Refuse a folder that holds the other kind of result.
        others = [kind for kind, marker in MARKERS.items() if kind != self.kind and (self.path / marker).is_file()]
        if others and not self.overwrite:
            raise ValueError(f"{self.path} holds a {others[0]}: give the {self.kind} another folder, or overwrite")

        # Continue an interrupted build, if its settings are the same.
        if afresh:
            self.discard()
        if self.is_unfinished:
            reason = self._why_not_continued()
            if reason and not self.overwrite:
                raise ValueError(
                    f"{self.path} holds an unfinished build {reason}; give the same, another folder, or overwrite"
                )
            if reason:
                self.discard()
        else:
            # A build that was stopped at its very beginning leaves nothing but a part of this file.
            left = sorted(path.name for path in self.stages.glob("*") if path.name != "settings.json.partial")
            if left and not self.overwrite:
                raise ValueError(
                    f"{self.stages} holds {left[0]}, which no build has put there: give another folder, or overwrite"
                )
            self.discard()
            self._refuse_foreign()

        self.stages.mkdir(exist_ok=True)
        write_object(self.stages / "settings.json", self.settings)

    def _why_not_continued(self) -> str:
        """Return why an interrupted build cannot be continued with these settings; empty if it can."""
        try:
            before = read_object(self.stages / "settings.json")
        except ValueError as error:
            return f"whose settings are lost: {error}"
        stages = {stage.name for stage in self.stages.iterdir()}
        only_text = stages <= {"corpus", "settings.json", "settings.json.partial"}
        # A setting that only one of both records has differs, too.
        names = TEXT_SETTINGS if only_text else {**before, **self.settings}
        changed = differences(before, {**before, **{name: self.settings.get(name) for name in names}})
        return changed and f"with other settings: {changed}"

    def _refuse_foreign(self) -> None:
        """Raise a ValueError for what :meth:`publish` could not replace, or must not without `overwrite`."""
        there = model_files(self.path)
        folders = [name for name in there if (self.path / name).is_dir()]
        if folders:
            raise ValueError(f"{self.path / folders[0]} is a folder, where a file must go: give another folder")
        if self.overwrite:
            return
        # Files of a result whose publishing was interrupted are in its manifest.
        manifest = self._read_manifest()
        own = {MANIFEST, *manifest.files} if manifest else set()
        foreign = [name for name in there if name not in own]
        if foreign:
            raise ValueError(
                f"{self.path} holds a {foreign[0]} that no build has put there: give another folder, or overwrite"
            )

    def manifest(self, *, check: bool = True) -> Manifest | None:
        """Read the manifest of the finished result.

        Args:
            check: Whether to compare the files with the manifest.

        Returns:
            The manifest; None if there is no finished result.

        Raises:
            ValueError: A file was changed after the build, or the result has no manifest, or a broken one.
        """
        if not (self.path / MARKERS[self.kind]).is_file():
            return None
        manifest = self._read_manifest()
        if manifest is None:
            what = "model" if self.kind == "dictionary" else self.kind
            raise ValueError(
                f"{self.path} holds a {what} that no build has put there: give another folder, or overwrite"
            )
        if check and (changed := manifest.changed_file(self.path)):
            raise ValueError(
                f"{changed} is not the file that the build has written: give another folder, or overwrite"
            )
        return manifest

    def _read_manifest(self) -> Manifest | None:
        try:
            return read_manifest(self.path)
        except ValueError as error:
            raise ValueError(f"{error}: give another folder, or overwrite") from error

    def is_finished(self, corpus_digest: Callable[[], str]) -> bool:
        """Return whether the folder holds the finished result of the same settings and texts.

        Args:
            corpus_digest: Computes the SHA-256 of the texts; called only if there is a finished result to compare
                with.

        Raises:
            ValueError: Without `overwrite`: the folder holds another finished result, or one whose files were changed.
        """
        try:
            manifest = self.manifest()
        except ValueError:
            if not self.overwrite:
                raise
            manifest = None
        if manifest is None:
            return False
        changed = differences(manifest.settings, {**self.settings, "corpus": corpus_digest()})
        if changed and not self.overwrite:
            raise ValueError(
                f"{self.path} holds a {self.kind} with other settings: {changed}; give the same, another folder, or "
                "overwrite"
            )
        return not changed

    def publish(self, corpus_sha256: str) -> None:
        """Add a manifest to the files in `ready`, move all of them into the folder, and remove the stages.

        The marker is moved last, so an incomplete result does not load. After an interruption the caller must write
        the files in `ready` again and repeat the call.

        Args:
            corpus_sha256: SHA-256 of the texts, for the manifest.
        """
        marker = MARKERS[self.kind]
        (self.ready / MANIFEST).unlink(missing_ok=True)  # an interruption has left it: it is no part of itself
        manifest = Manifest.of(self.ready, {**self.settings, "corpus": corpus_sha256})
        manifest.write(self.ready)

        # Remove what is overwritten, the marker first.
        (self.path / marker).unlink(missing_ok=True)
        try:
            old = read_manifest(self.path)
        except ValueError:
            old = None
        for name in old.files if old else ():
            (self.path / name).unlink(missing_ok=True)
        move_files(self.ready, self.path, marker)
        self.discard()

    def discard(self) -> None:
        """Remove the stages of a build.

        They are renamed first, so that what an interruption leaves is not taken for an unfinished build, or for files
        of the user.
        """
        self.clear_removed()
        if self.stages.is_dir():
            self.stages.rename(self.path / REMOVED)
            self.clear_removed()

    def clear_removed(self) -> None:
        """Remove what an interruption of :meth:`discard` has left."""
        shutil.rmtree(self.path / REMOVED, ignore_errors=True)
