"""Where the projection of a student begins: at the linear map of its states that is nearest to the teacher."""

from collections.abc import Callable
from typing import Any

import torch
from datasets import IterableDataset
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.modeling_skd_student import SKDStudentModel
from .checks import check_step
from .losses import IGNORED, comparable, sense_labels

# Rows that the map is fitted to, and how many run at once.
ROWS = 2048
BATCH_ROWS = 32
# Added to the variance of each direction, in units of the mean variance: few texts leave directions open.
RIDGE = 1e-3


@torch.no_grad()
def fit_projection(
    student: SKDStudentModel,
    data: Any,
    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
    teacher_vectors: Callable[[dict[str, Tensor]], Tensor | None],
) -> None:
    """Set a student's projection by ridge regression from the states of its backbone.

    With a random projection the first steps would destroy what the backbone knows. See Kumar et al., "Fine-Tuning can
    Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022.

    Args:
        student: The student, without dropout. Nothing is done if it has no projection, or a frozen one.
        data: The rows of the training texts. Up to `ROWS` of them are used, evenly spaced; of a stream the first.
        collate: Makes a batch of rows.
        teacher_vectors: Returns the teacher's vectors of a batch, `[batch, positions, hidden]`. If it has none, the
            senses that the teacher picks take their place.
    """
    projection: nn.Linear | None = getattr(student, "projection", None)
    if projection is None or not projection.weight.requires_grad or data is None:
        return
    if isinstance(data, IterableDataset):
        rows = list(data.take(ROWS))
    else:
        number = min(len(data), ROWS)
        rows = [data[place * len(data) // number] for place in range(number)]
    rows.sort(key=lambda row: len(row["input_ids"]))  # little is padding then

    senses, similarity = student.senses, student.senses.config.similarity
    # Sums over positions, of states and targets with a 1 at their end: their products hold all moments.
    sizes = projection.in_features + 1, projection.out_features + 1
    own = torch.zeros(sizes[0], sizes[0], dtype=torch.float64)
    both = torch.zeros(*sizes, dtype=torch.float64)
    for first in range(0, len(rows), BATCH_ROWS):
        batch = {name: values.to(student.device) for name, values in collate(rows[first : first + BATCH_ROWS]).items()}
        ids, mask = batch["input_ids"], batch["attention_mask"]
        states = student.backbone(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state
        teacher = teacher_vectors(batch)
        check_step(0, mask, teacher=teacher, student=states)
        is_known = batch["labels"] != IGNORED
        if teacher is not None:
            targets = comparable(teacher[is_known], similarity)
        else:
            choices = sense_labels(batch, senses).sense_ids[..., 0]
            tokens, _ = senses.config.key_tokens(ids, mask)
            picked = senses.look_up(tokens[is_known], choices[is_known])
            targets = comparable(picked, similarity)
        left, right = (F.pad(values.double().cpu(), (0, 1), value=1.0) for values in (states[is_known], targets))
        own += left.T @ left
        both += left.T @ right
    count = own[-1, -1]
    if not count:
        return
    mean, target_mean = own[-1, :-1] / count, both[-1, :-1] / count
    covariance = own[:-1, :-1] / count - mean.outer(mean)
    cross = both[:-1, :-1] / count - mean.outer(target_mean)
    ridge = RIDGE * covariance.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    weight = torch.linalg.solve(covariance + ridge * torch.eye(len(mean), dtype=torch.float64), cross)
    projection.weight.copy_(weight.T)
    projection.bias.copy_(target_mean - mean @ weight)
