"""Where the projection of a student begins: near the linear map that suits its backbone and its teacher best."""

import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from datasets import IterableDataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer

from ..models.modeling_skd_student import SKDStudentModel
from .checks import check_step
from .losses import IGNORED, comparable, sense_labels

# At most this many rows are read, and no further batch once there are so many positions.
ROWS = 2048
POSITIONS = 1 << 16
# Added to the variance of each direction, in units of the mean variance: few texts leave directions open.
RIDGE = 1e-3


@torch.no_grad()
def fit_projection(
    student: SKDStudentModel, trainer: Trainer, teacher_vectors: Callable[[dict[str, Tensor]], Tensor | None]
) -> None:
    """Set a student's projection by ridge regression from the states of its backbone.

    With a random projection the first steps would destroy what the backbone knows. See Kumar et al., "Fine-Tuning can
    Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022.

    Args:
        student: The student, without dropout. Nothing is done if it has no projection, or a frozen one.
        trainer: The trainer of the student. Some of its training rows are drawn, of a stream the first ones. They run
            in batches of the size for evaluation, as nothing is trained yet.
        teacher_vectors: Returns the teacher's vectors of a batch, `[batch, positions, hidden]`. If it has none, the
            senses that the teacher picks take their place.
    """
    projection: nn.Linear | None = getattr(student, "projection", None)
    data: Any = trainer.train_dataset
    if projection is None or not projection.weight.requires_grad or data is None:
        return
    if isinstance(data, IterableDataset):
        rows: Iterator[dict[str, Any]] = iter(data.take(ROWS))
    else:
        places = random.Random(0).sample(range(len(data)), min(len(data), ROWS))
        rows = (data[place] for place in places)

    # Sums over positions: of the states with a 1 at their end, times themselves and times the targets.
    senses, similarity = student.senses, student.senses.config.similarity
    width = projection.in_features + 1
    own = torch.zeros(width, width, dtype=torch.float64)
    both = torch.zeros(width, projection.out_features, dtype=torch.float64)
    length = 0.0  # of the targets, summed
    while own[-1, -1] < POSITIONS and (some := list(islice(rows, trainer.args.per_device_eval_batch_size))):
        batch = {name: values.to(student.device) for name, values in trainer.data_collator(some).items()}
        ids, mask = batch["input_ids"], batch["attention_mask"]
        states = student.backbone(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state
        teacher = teacher_vectors(batch)
        check_step(0, mask, teacher=teacher, student=states)
        is_known = batch["labels"] != IGNORED
        if teacher is not None:
            targets = teacher[is_known]
        else:
            choices = sense_labels(batch, senses).sense_ids[..., 0]
            tokens, _ = senses.config.key_tokens(ids, mask)
            targets = senses.look_up(tokens[is_known], choices[is_known])
        known = F.pad(states[is_known].cpu().double(), (0, 1), value=1.0)
        own += known.T @ known
        both += known.T @ comparable(targets, similarity).cpu().double()
        length += float(targets.float().norm(dim=-1).sum())

    # Ridge regression. Means are taken out, so that they cost nothing.
    count = own[-1, -1]
    if not count:
        return
    mean, target_mean = own[-1, :-1] / count, both[-1] / count
    covariance = own[:-1, :-1] / count - mean.outer(mean)
    cross = both[:-1] / count - mean.outer(target_mean)
    ridge = RIDGE * covariance.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    weight = torch.linalg.solve(covariance + ridge * torch.eye(len(mean), dtype=torch.float64), cross)
    # Directions are fitted to a dictionary by cosine. The student's vectors are as long as the teacher's in any case,
    # because they are averaged with senses.
    scale = length / count if similarity == "cosine" else 1.0
    projection.weight.copy_(scale * weight.T)
    projection.bias.copy_(scale * (target_mean - mean @ weight))
