"""The losses of students that classify."""

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig


def text_loss(config: PreTrainedConfig, logits: Tensor, labels: Tensor, items: Tensor | int | None) -> Tensor:
    """Compute the loss of `config.problem_type`, which the first labels set if it is None.

    Args:
        config: Config of the student.
        logits: `[batch, num_labels]`.
        labels: `[batch]`, or `[batch, num_labels]`.
        items: Number that the summed loss is divided by. None: the loss is a mean.
    """
    if config.problem_type is None:  # a pipeline reads it from the saved config
        if logits.shape[-1] == 1:
            config.problem_type = "regression"
        elif labels.is_floating_point():
            config.problem_type = "multi_label_classification"
        else:
            config.problem_type = "single_label_classification"
    reduction = "mean" if items is None else "sum"
    if config.problem_type == "regression":
        loss = F.mse_loss(logits, labels.to(logits.dtype).view_as(logits), reduction=reduction)
    elif config.problem_type == "multi_label_classification":
        loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction=reduction)
    else:
        loss = F.cross_entropy(logits, labels.view(-1), reduction=reduction)
    return loss if items is None else loss / items


def token_loss(logits: Tensor, labels: Tensor, items: Tensor | int | None) -> Tensor:
    """Compute the cross-entropy of tokens.

    Args:
        logits: `[batch, positions, num_labels]`.
        labels: `[batch, positions]`, -100 for positions that are not counted.
        items: Number that the summed loss is divided by. None: the loss is a mean over the counted positions.
    """
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="mean" if items is None else "sum")
    return loss if items is None else loss / items
