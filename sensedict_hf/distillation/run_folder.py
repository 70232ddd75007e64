"""The folder of a distillation: what was begun there with which settings, and how the finished student gets there."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..building.workspace import differences
from ..models.files import model_files, read_object, write_object
from ..models.modeling_skd_base import SKDStudentPreTrainedModel

# The settings of the run in its folder, and whether it is finished.
STATE = "_distilling.json"
# The name of what a run uses, and its digest, which decides where one run has the name and the other has an object.
DIGESTS = {
    "teacher": "teacher_fingerprint",
    "senses": "senses_fingerprint",
    "backbone": "backbone_fingerprint",
    "texts": "corpus",
}


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run: its state and checkpoints, and the student when it is finished.

    Attributes:
        path: The folder.
    """

    path: Path

    def begin(self, settings: dict[str, Any], overwrite: bool) -> bool:
        """Record the settings of a run, or compare them with what an earlier call recorded.

        Args:
            settings: Everything that decides the weights, as JSON values.
            overwrite: Whether to replace another student or run.

        Returns:
            Whether the student is finished.

        Raises:
            ValueError: The folder holds another student or run.
        """
        try:
            begun = self._read()
        except ValueError as error:
            if not overwrite:
                raise ValueError(f"{error}: give another folder, or overwrite") from error
            begun = None
        left = []
        if begun is None:
            left = [path.name for path in self._temporary() if path.exists()]
            left += model_files(self.path)
        changed = _changed(begun, settings) if begun else ""
        if (changed or begun is None and (self.path / "config.json").is_file()) and not overwrite:
            what = (
                f"a run with other settings: {changed}" if begun else "a model that no sensedict distill has put there"
            )
            raise ValueError(f"{self.path} holds {what}; give the same, another folder, or overwrite")
        if left and not overwrite:
            raise ValueError(
                f"{self.path} holds a {left[0]} that no sensedict distill has put there: give another folder, or "
                "overwrite"
            )

        # Continue. A checkpoint whose writing was interrupted lacks its last file, or has only a part of it.
        if begun and not changed:
            for checkpoint in self.path.glob("checkpoint-*"):
                try:
                    read_object(checkpoint / "trainer_state.json")
                except (ValueError, FileNotFoundError):
                    shutil.rmtree(checkpoint)
            if begun.get("finished"):
                self._clear()
            return bool(begun.get("finished"))

        # Begin anew.
        (self.path / STATE).unlink(missing_ok=True)
        (self.path / "config.json").unlink(missing_ok=True)
        self._clear()
        self.path.mkdir(parents=True, exist_ok=True)
        write_object(self.path / STATE, settings)
        return False

    def forget(self) -> None:
        """Remove the state if nothing was done yet, so that the next call may have other settings."""
        encoded = self.path / "_encoded"
        if not any(encoded.rglob("part-*")) and not list(self.path.glob("checkpoint-*")):
            shutil.rmtree(encoded, ignore_errors=True)  # texts without the teacher's work
            (self.path / STATE).unlink()

    def finish(self, student: SKDStudentPreTrainedModel) -> None:
        """Save the student, and remove what is only needed to continue."""
        student.save_pretrained(self.path)
        write_object(self.path / STATE, {**(self._read() or {}), "finished": True})
        self._clear()

    def _read(self) -> dict[str, Any] | None:
        path = self.path / STATE
        if not path.is_file():
            return None
        state = read_object(path)
        if "teacher" not in state:
            raise ValueError(f"{path} is broken (it does not name the teacher)")
        return state

    def _clear(self) -> None:
        """Remove what is only needed to continue: checkpoints and encoded texts, which nobody should publish."""
        for path in self._temporary():
            shutil.rmtree(path, ignore_errors=True)

    def _temporary(self) -> list[Path]:
        """Return the folders that a run needs to continue, which may not exist."""
        return [self.path / "_encoded", *sorted(self.path.glob("checkpoint-*"))]


def _changed(begun: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Describe how settings differ from those that a run was begun with; empty if they are equal."""
    before = {name: value for name, value in begun.items() if name != "finished"}
    now = dict(settings)
    for name, digest in DIGESTS.items():
        is_named = None not in (before.get(name), now.get(name))
        if not is_named and before.get(digest) is not None and before.get(digest) == now.get(digest):
            before.pop(name, None)
            now.pop(name, None)
    return differences(before, now)
