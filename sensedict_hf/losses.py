"""Losses of distillation, each summed over the counted positions."""

from torch import Tensor


def hidden_mse(student: Tensor, teacher: Tensor, counted: Tensor, unit: float) -> Tensor:
    """Summed squared distance between the student's and the teacher's vectors, the usual hidden-state regression.

    Args:
        student, teacher: `[batch, positions, hidden]`. counted: `[batch, positions]`, bool.
        unit: what a squared distance is divided by. With the dictionary's distortion the loss is of the order of the
            cross-entropy over senses, whatever the scale of the teacher.
    """
    return (student[counted].float() - teacher[counted].float()).square().sum() / unit
