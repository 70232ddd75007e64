"""The model that encodes the texts of an index: its name in the saved folder, and what tells it from others."""

import os
import threading
from pathlib import Path

import torch
from torch import Tensor

from ..models.modeling_sense_embedding import SenseEmbeddingModel
from ..models.modeling_skd_student import SKDStudentModel
from ..models.teachers import Teacher
from .encoding import Model, load_encoder
from .token_vectors import TokenEncoder

PROBED = 16  # tokens whose vectors are kept
# The vectors of one model in float32 and in bfloat16 differ by about a hundredth of their length.
LARGEST_DIFFERENCE = 0.1
# Several threads may search at once: one of them loads the model. An index with a lock could not be copied.
_LOADING = threading.RLock()


class ModelSource:
    """A model, or the name of one that is loaded when it is needed.

    A saved index keeps the vectors of some tokens. A model that is found by its name must make the same ones, so that
    other weights or another prompt are noticed.

    Args:
        model: The model, or its name or path; empty if it is not known.
        probe: What :meth:`probe` returned when the index was saved. None: a model of that name is believed.
    """

    def __init__(self, model: Teacher | SKDStudentModel | str, probe: Tensor | None = None) -> None:
        self._model, self._probe = model, probe

    @classmethod
    def find(
        cls, name: str, folder: Path, probe: Tensor | None, model: Model | None, trust_remote_code: bool
    ) -> "ModelSource":
        """Return the source of an index that is loaded.

        Args:
            name: What :meth:`name` returned when the index was saved.
            folder: The folder of the index.
            probe: The probe in the folder.
            model: A model that is used instead, as it is.
            trust_remote_code: Whether to run Python code that comes with the model, which is then loaded now.
        """
        if model is not None:
            return cls(load_encoder(model, trust_remote_code=trust_remote_code))
        # A path begins at the folder, as the working directory may change.
        path = os.path.realpath(folder / name)
        found = path if name and (os.path.isdir(path) or name.startswith("..")) else name
        return cls(_load(found, trust_remote_code) if trust_remote_code else found, probe)

    def load(self, senses: SenseEmbeddingModel) -> Teacher | SKDStudentModel:
        """Return the model.

        Args:
            senses: The dictionary of the index.

        Raises:
            ValueError: It is not known, not there, or not the one that the index was made with.
        """
        with _LOADING:
            name, model = self._model, _load(self._model) if isinstance(self._model, str) else self._model
            if self._probe is not None:
                found = probe_vectors(TokenEncoder(model, senses), senses)
                is_same = found.shape == self._probe.shape
                if not is_same or (found - self._probe).norm() > LARGEST_DIFFERENCE * self._probe.norm():
                    raise ValueError(
                        f"{name if isinstance(name, str) else 'the model'} makes other vectors than the model that "
                        "the index was built with: its weights or its prompt have changed. Build the index again, or "
                        "pass the right model as model="
                    )
                self._probe = None  # it need not be compared again
            self._model = model
            return model

    def probe(self, senses: SenseEmbeddingModel) -> Tensor | None:
        """Return the vectors of some tokens, `[tokens, hidden]`, float32; None if there is no model to make them.

        Args:
            senses: The dictionary of the index.
        """
        if isinstance(self._model, str):
            return self._probe
        return probe_vectors(TokenEncoder(self._model, senses), senses)

    def name(self, folder: Path) -> str:
        """Return the name of the model, or the path to it from a folder; empty if none is known.

        A path is known only if the model lies next to the folder, or both are in the working directory. Another one
        would tell where things are on this machine.

        Args:
            folder: The folder of the index.
        """
        model = self._model
        name = model if isinstance(model, str) else (model.model if isinstance(model, Teacher) else model).name_or_path
        if not name or not os.path.isdir(name):
            return name or ""
        place, target = Path(folder).resolve(), Path(name).resolve()
        for common in (place.parent, Path.cwd()):
            is_around_both = target.is_relative_to(common) and place.is_relative_to(common)
            if is_around_both and common != Path(common.anchor):
                return Path(os.path.relpath(target, place)).as_posix()
        return ""


def probe_vectors(encoder: TokenEncoder, senses: SenseEmbeddingModel) -> Tensor:
    """Return the vectors of the first tokens that have senses, read as one text: `[tokens, hidden]`, float32.

    Args:
        encoder: Makes the vectors.
        senses: The dictionary.
    """
    tokens = senses.offsets.diff().nonzero()[:PROBED, 0].tolist()
    return torch.cat([batch.vectors.float().cpu() for batch in encoder.batches([tokens])])


def _load(source: str, trust_remote_code: bool = False) -> Teacher | SKDStudentModel:
    """Load the model that an index was built with.

    Raises:
        ValueError: It is not known, or not there.
    """
    if not source:
        raise ValueError(
            "the index does not know where its model came from: give it (model=, or --model on the command line)"
        )
    try:
        return load_encoder(source, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise ValueError(
            f"the index was built with the model {source}, which is not there: pass it as model="
        ) from error
