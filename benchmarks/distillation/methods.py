"""The methods that are compared, and the trainer that runs all of them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from sensedict_hf import SKDStudentModel, SKDTrainer, SKDTrainingArguments, Teacher
from sensedict_hf.distillation.batches import Collator
from sensedict_hf.distillation.losses import IGNORED, hidden_mse, sentence_mse
from sensedict_hf.distillation.modes import without_dropout
from sensedict_hf.distillation.projection import fit_projection
from sensedict_hf.models.encoding import padding_id, pool


@dataclass(frozen=True)
class Method:
    """A way to distil.

    Attributes:
        title: Title in the table.
        output: The output that the method is made for.
        settings: Settings of :class:`SKDTrainingArguments`.
        similarity: Similarity of the dictionary.
        separate: Whether each task has a student and a dictionary of its own.
        frozen: Whether the token embeddings stay those of the teacher.
        sense_rate: The method trains the output `half` end to end. This is the learning rate of the senses; 0 keeps
            them. None: the method trains the student's own vectors.
    """

    title: str
    output: str = "raw"
    settings: dict[str, Any] = field(default_factory=dict)
    similarity: str = "l2"
    separate: bool = False
    frozen: bool = False
    sense_rate: float | None = None


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
    "frozen": Method("SKD, token embeddings as they are", "half", frozen=True),
    "output": Method("the output half, end to end", "half", sense_rate=0.0),
    "learned-slow": Method("the output half and its senses, end to end, 1e-4", "half", sense_rate=1e-4),
    "learned": Method("the output half and its senses, end to end, 1e-3", "half", sense_rate=1e-3),
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


class OutputTrainer(Trainer):
    """Trains the output that users get, and with it the senses: regression of hidden states and of sentences.

    Args:
        sense_rate: Learning rate of the senses.
        student: The student. Its output is the mean of its own vector and its senses.
        args: Settings. The weights of both losses are those of SKD.
        data: The windows of the texts.
        vectors: The teacher's vectors, see :class:`CachedCollator`.
    """

    def __init__(
        self,
        sense_rate: float,
        student: SKDStudentModel,
        args: SKDTrainingArguments,
        data: Dataset,
        vectors: np.ndarray,
    ):
        padding = padding_id(student.tokenizer, student)
        collator = CachedCollator(padding, student.senses.config, None, False, vectors)
        args.remove_unused_columns = False  # the collator needs them
        super().__init__(student, args, train_dataset=data, data_collator=collator)
        self.model_accepts_loss_kwargs, self.student, self.sense_rate = True, student, sense_rate
        self.unit = student.senses.score_temperature(1.0)  # before the senses change

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train without dropout, and begin with a projection that is fitted, as :class:`SKDTrainer` does."""
        with without_dropout(self.student):
            fit_projection(self.student, self, lambda inputs: inputs["vectors"].float())
            return super().train(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make AdamW with a learning rate of its own for the senses."""
        if self.optimizer is None:
            rates: dict[float, list[nn.Parameter]] = {self.args.learning_rate: [], self.sense_rate: []}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    rates[self.sense_rate if name == "senses.senses" else self.args.learning_rate].append(parameter)
            groups = [{"params": some, "lr": rate} for rate, some in rates.items() if some]
            self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Compute the mean loss over positions."""
        mask, theirs = inputs["attention_mask"], inputs["vectors"].float()
        own = model(input_ids=inputs["input_ids"], attention_mask=mask, assignment="soft").last_hidden_state
        counted = inputs["labels"] != IGNORED
        sentences = sentence_mse(pool(own, mask, "mean"), pool(theirs, mask, "mean"), counted)
        loss = self.args.mse_weight * hidden_mse(own, theirs, counted) + self.args.sentence_weight * sentences
        return loss / self.unit / (counted.sum() if num_items_in_batch is None else num_items_in_batch)
