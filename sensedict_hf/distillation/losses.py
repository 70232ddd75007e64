"""Losses of regression, sums over positions, and what a position weighs; of senses it is [`SenseEmbeddingModel.cross_entropy`]."""

import torch
from torch import Tensor

from ..models.modeling_sense_embedding import SenseEmbeddingModel


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


def position_weights(senses: SenseEmbeddingModel, power: float) -> Tensor:
    """How much a position with each token counts, `[vocab]`: a power of the token's number of occurrences in the dictionary's corpus,
    with the mean weight 1 over that. A token that did not occur counts as one that occurred once."""
    totals = torch.cat([senses.usage.new_zeros(1), senses.usage.cumsum(0)])[senses.offsets.to(senses.usage.device)]
    counts = totals.diff().float()
    weights = counts.clamp_min(1) ** power
    return weights * counts.sum() / (counts * weights).sum()
