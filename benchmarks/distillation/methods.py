"""The methods that are compared, and the trainer that runs all of them."""

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
    """A way to distil.

    Attributes:
        title: Title in the table.
        output: The output that the method is made for.
        settings: Settings of :class:`SKDTrainingArguments`.
        similarity: Similarity of the dictionary.
        separate: Whether each task has a student and a dictionary of its own.
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
    "skd": Method("SKD", "half"),  # the default: senses, hidden-state MSE and sentence MSE together
    "mse-sep": Method("hidden-state MSE, a student for each task", settings={"objective": "mse"}, separate=True),
    "skd-sep": Method("SKD, a student for each task", "half", separate=True),
}

# Changed settings of SKD for `--settings`.
SETTINGS = (
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
    """Adds the teacher's vectors to a batch.

    Attributes:
        vectors: The teacher's vectors of all texts, `[positions, hidden]`. The column `begin` of a row says where its
            own begin.
    """

    vectors: np.ndarray

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        parts = [self.vectors[row["begin"] : row["begin"] + len(row["input_ids"])] for row in rows]
        states = [torch.from_numpy(part.copy()) for part in parts]
        return super().__call__(rows) | {"vectors": nn.utils.rnn.pad_sequence(states, batch_first=True)}


class CachedTrainer(SKDTrainer):
    """An :class:`SKDTrainer` that reads the teacher's vectors instead of running it.

    Attributes:
        is_cosine: Train with the cosine of hidden states, which is no objective of the package.
    """

    is_cosine = False

    def read(self, teacher: Teacher, vectors: np.ndarray) -> None:
        """Set the vectors, see :class:`CachedCollator`. Call this before `train`."""
        own, self.teacher = self.data_collator, teacher
        self.data_collator = CachedCollator(own.pad_token_id, own.senses, own.has_senses, False, vectors)

    def _encode(self, texts: Dataset, args: SKDTrainingArguments, name: str) -> Dataset:
        return texts  # token ids already

    def _teacher_vectors(self, inputs: dict[str, Tensor]) -> Tensor:
        return inputs["vectors"].float()

    def _loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        if not self.is_cosine:
            return super()._loss(model, inputs)
        own = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], assignment="none"
        ).student_hidden_state
        return ((1 - F.cosine_similarity(own, inputs["vectors"].float(), dim=-1)) * inputs["owned"]).sum()
