"""Losses of regression, sums over positions, and what a position weighs; of senses it is [`SenseEmbeddingModel.cross_entropy`]."""

from torch import Tensor


def hidden_mse(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Summed squared distance between the student's and the teacher's vectors, the usual hidden-state regression.

    Args:
        student, teacher: `[batch, positions, hidden]`. weights: `[batch, positions]`, 0 where a position is not counted.
    """
    return ((student.float() - teacher.float()).square().sum(-1) * weights).sum()


def sentence_mse(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """The same for the vectors of whole texts, as in distillation of sentence embeddings (Reimers and Gurevych, "Making Monolingual
    Sentence Embeddings Multilingual", EMNLP 2020). A text counts as often as its positions together, so that the sum can be divided
    by their number like that of `hidden_mse`, which it does not exceed for means.

    Args:
        student, teacher: `[batch, hidden]`. weights: `[batch, positions]`.
    """
    return ((student.float() - teacher.float()).square().sum(-1) * weights.sum(1)).sum()
