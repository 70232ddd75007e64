"""A teacher that reads each text once, whatever is asked about it."""

import itertools
from dataclasses import fields
from pathlib import Path
from uuid import uuid4

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sensedict_hf import Teacher

ROWS = 500  # texts in a file


class StoredStates(Teacher):
    """A teacher whose last states are kept in a folder, in half precision.

    Dictionaries and scores of one teacher read the same texts. With stored states the model runs for the first of them
    only, and an interrupted run does not begin again. All states are held in memory too.

    Args:
        teacher: The teacher.
        folder: Folder of the states. They are of this teacher alone, so it gets a folder of its own in there.
    """

    def __init__(self, teacher: Teacher, folder: Path):
        super().__init__(**{field.name: getattr(teacher, field.name) for field in fields(Teacher)})
        self.folder = folder / self.fingerprint()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.states: dict[tuple[int, ...], Tensor] = {}
        self.unsaved: list[tuple[int, ...]] = []
        for path in sorted(self.folder.glob("*.safetensors")):
            stored = load_file(path)
            sizes = stored["sizes"].tolist()
            rows = (tuple(row.tolist()) for row in stored["tokens"].split(sizes))
            self.states.update(zip(rows, stored["states"].split(sizes)))

    @torch.inference_mode()
    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor | None = None, layer: int = -1) -> Tensor:
        """Return the hidden states of one layer. Only those of the last one are stored.

        Raises:
            ValueError: A state is not finite in half precision.
        """
        if layer != -1:
            return super().hidden_states(input_ids, attention_mask, layer)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        is_token = mask.bool()
        rows = [tuple(ids[own].tolist()) for ids, own in zip(input_ids, is_token)]
        missing = [place for place, row in enumerate(rows) if row not in self.states]
        if missing:
            states = super().hidden_states(input_ids[missing], mask[missing]).half()
            if not states[is_token[missing]].isfinite().all():
                raise ValueError(f"{self.name} has states that are not finite in half precision")
            for place, own, found in zip(missing, is_token[missing], states):
                self.states[rows[place]] = found[own].cpu()
                self.unsaved.append(rows[place])
            if len(self.unsaved) >= ROWS:
                self.save()
        known = torch.cat([self.states[row] for row in rows]).float().to(input_ids.device)
        found = known.new_zeros(*input_ids.shape, known.shape[-1])
        found[is_token] = known
        return found

    def save(self) -> None:
        """Write the states that are in memory alone."""
        if not self.unsaved:
            return
        path = self.folder / f"{uuid4().hex}.safetensors"  # several processes may add files
        columns = {
            "sizes": torch.tensor([len(row) for row in self.unsaved]),
            "tokens": torch.tensor([*itertools.chain.from_iterable(self.unsaved)]),
            "states": torch.cat([self.states[row] for row in self.unsaved]),
        }
        partial = path.with_suffix(".partial")
        save_file(columns, partial)
        partial.replace(path)
        self.unsaved.clear()
