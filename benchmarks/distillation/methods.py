"""The ways to distil that are compared, and the trainer of all of them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F

from sensedict_hf import SKDTrainer, SKDTrainingArguments, Teacher
from sensedict_hf.distillation.batches import Collator


@dataclass(frozen=True)
class Method:
    """
    Attributes:
        title: in the table. output: which of the student's vectors are its embeddings.
        settings: of [`SKDTrainingArguments`]. similarity: of the dictionary. separate: a student, and a dictionary, for each task.
    """

    title: str
    output: str = "raw"
    settings: dict[str, Any] = field(default_factory=dict)
    similarity: str = "l2"
    separate: bool = False


METHODS = {
    "cut": Method("layers cut off"),
    "mse": Method("hidden-state MSE", settings={"objective": "mse"}),
    "cosine": Method("hidden-state cosine", settings={"objective": "mse"}),
    "sentence": Method("sentence MSE", settings={"objective": "sentence"}),
    "mse+sentence": Method(
        "hidden-state and sentence MSE",
        settings={"objective": "mse+sentence", "mse_weight": 1.0, "sentence_weight": 3.0},
    ),
    "paper": Method("SKD as in the paper", "hard", {"objective": "sense"}, "dot"),
    "sense": Method("senses alone", "soft", {"objective": "sense"}),
    "skd": Method("SKD", "half"),  # by default: senses, hidden-state and sentence MSE together
    "mse-sep": Method("hidden-state MSE, a student for each task", settings={"objective": "mse"}, separate=True),
    "skd-sep": Method("SKD, a student for each task", "half", separate=True),
}

SETTINGS = (  # of SKD, each instead of its default
    {"temperature": 0.05},
    {"temperature": 0.5},
    {"label_top_k": 8},
    {"objective": "sense+mse"},
    {"objective": "sense+sentence"},
    {"mse_weight": 1},
    {"mse_weight": 9},
    {"sentence_weight": 3},
    {"sentence_weight": 27},
)


@dataclass
class CachedCollator(Collator):
    """Adds the teacher's vectors, `[positions, hidden]` of all texts."""

    vectors: np.ndarray

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        states = [
            torch.from_numpy(self.vectors[row["begin"] : row["begin"] + len(row["input_ids"])].copy()) for row in rows
        ]
        return super().__call__(rows) | {"vectors": nn.utils.rnn.pad_sequence(states, batch_first=True)}


class CachedTrainer(SKDTrainer):
    """Reads the teacher's vectors instead of running it, and knows the cosine."""

    is_cosine = False

    def read(self, teacher: Teacher, vectors: np.ndarray) -> None:
        """Takes the teacher's vectors of all positions, `[positions, hidden]`, where the column `begin` says."""
        own, self.teacher = self.data_collator, teacher
        self.data_collator = CachedCollator(own.pad_token_id, own.has_senses, False, vectors)

    def _encode(self, texts: Dataset, args: SKDTrainingArguments, name: str) -> Dataset:
        return texts  # token ids; what the teacher makes of them is in `vectors`

    def _teacher_vectors(self, inputs: dict[str, Tensor]) -> Tensor:
        return inputs["vectors"].float()

    def _loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        if not self.is_cosine:
            return super()._loss(model, inputs)
        own = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], assignment="none"
        ).student_hidden_state
        return ((1 - F.cosine_similarity(own, inputs["vectors"].float(), dim=-1)) * inputs["owned"]).sum()
