"""Rows of `encode_senses` -> padded batches."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .encoding import pad_batch
from .labeling import IGNORED


@dataclass
class Collator:
    """Makes a batch of what [`encode_senses`] returns. Not a method of the trainer, as it is sent to the processes that load data.

    Attributes:
        pad_token_id: what to pad with. has_senses: `[vocabulary]`, bool, of which tokens alone something can be learned (None: of all).
        is_labelled: whether all labels are there; else the teacher tells them beside.
    """

    pad_token_id: int
    has_senses: Tensor | None
    is_labelled: bool

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, `labels` and `owned` (the positions that are this row's, not a neighbouring window's),
        `[rows, longest]`; of soft labels also `sense_ids` and `probabilities`, `[rows, longest, top_k]`."""
        input_ids, mask = pad_batch([row["input_ids"] for row in rows], self.pad_token_id)
        labels = pad_sequence([torch.as_tensor(row["labels"], dtype=torch.int64) for row in rows], True, IGNORED)
        batch = {"input_ids": input_ids, "attention_mask": mask, "labels": labels, "owned": labels != IGNORED}
        if self.has_senses is not None:
            known = self.has_senses[input_ids]
            batch["labels"] = labels.masked_fill(~(known & (labels >= 0) if self.is_labelled else known), IGNORED)
        for name, filling in (("sense_ids", -1), ("probabilities", 0)) if "sense_ids" in rows[0] else ():
            values = [torch.as_tensor(row[name]).view(len(row["labels"]), -1) for row in rows]
            batch[name] = pad_sequence(values, True, filling)
        return batch
