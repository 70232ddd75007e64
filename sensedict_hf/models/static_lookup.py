"""The look-up of senses in a form that torch can trace, for `torch.export`, `torch.compile` and ONNX.

The blocks of :mod:`sense_blocks` depend on the numbers in a batch. Here each position is scored against as many rows
as the token with the most senses has. The rows are taken in steps, so that they fit into memory for all positions.
Where each token has one sense this is a single copy. For few positions and few senses it is the faster form, too.
"""

import torch
from torch import Tensor

from .arguments import is_traced
from .sense_blocks import Block, RaggedSenses, blocking_for, score_block

# Rows that are looked at together. The senses of a step are `[n, STEP, hidden]`.
STEP = 64


class MostSenses:
    """The largest number of senses of a token.

    A tracer cannot read it from a tensor. So it is read when a dictionary is loaded, saved or used, and kept.
    """

    def __init__(self) -> None:
        self._offsets: Tensor | None = None
        self._version: int | None = None
        self._most = 0

    def of(self, offsets: Tensor) -> int:
        """Return the number.

        Args:
            offsets: `[vocab + 1]`, as in :class:`RaggedSenses`.

        Raises:
            ValueError: torch is tracing a dictionary that was not used before.
        """
        if is_traced():
            if self._offsets is None:
                raise ValueError(
                    "this dictionary was never used: call the model once before it is compiled or exported"
                )
            return self._most
        version = None if offsets.is_inference() else offsets._version  # such a tensor counts no versions
        if offsets is not self._offsets or version != self._version:
            self._offsets, self._version, self._most = offsets, version, int(offsets.diff().amax())
        return self._most


def is_padding_faster(hidden: Tensor, senses: RaggedSenses, most: int) -> bool:
    """Return whether :func:`assign_padded` is the form to choose: the faster one, or the only one while torch traces.

    On a CPU it is 1.6 to 10 times as fast for at most 2^20 numbers (`python -m benchmarks.lookup --forms`).

    Args:
        hidden: `[n, hidden]`, the vectors.
        senses: The dictionary.
        most: The largest number of senses of a token.
    """
    if is_traced():
        return True
    is_small = most <= 1 or hidden.numel() * most <= blocking_for(hidden).elements
    return is_small and hidden.device == senses.table.device == senses.offsets.device


def assign_padded(
    hidden: Tensor, token_ids: Tensor, senses: RaggedSenses, most: int, temperature: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Assign senses like :func:`assign_senses`, without grouping the positions.

    Args:
        hidden: `[n, hidden]`, the vectors, in any float dtype, without gradient.
        token_ids: `[n]`, below the vocabulary size; a negative one has no senses.
        senses: The dictionary, on the device of `hidden`.
        most: The largest number of senses of a token.
        temperature: None for hard assignment, a number for soft assignment, in units of the score.

    Returns:
        Three tensors: the vectors, `[n, hidden]`; the index of each position's best sense, `[n]`, -1 if its token has
        no senses; and a number that is finite only if all vectors, senses and scores are.

    Raises:
        ValueError: The similarity is unknown.
    """
    starts, sizes = senses.spans(token_ids)
    has_senses = sizes > 0
    sense_ids = has_senses.long() - 1  # the first sense
    seen = hidden.float().sum()
    if most == 0:
        return hidden, sense_ids, seen
    if most > 1:
        sense_ids, mean, scored = _score_in_steps(hidden.float(), starts, sizes, senses, most, temperature)
    if most == 1 or temperature is None:
        mean = senses.take((starts + sense_ids).masked_fill(~has_senses, 0), hidden.device)
    vectors = torch.where(has_senses[:, None], mean.to(hidden.dtype), hidden)
    return vectors, sense_ids, seen + vectors.detach().float().sum() + (scored if most > 1 else 0)


def _score_in_steps(
    states: Tensor, starts: Tensor, sizes: Tensor, senses: RaggedSenses, most: int, temperature: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best sense of each position, with a temperature the mean of its senses, and the sum of all scores.

    The softmax is computed step by step: the sums are scaled down whenever a larger score is found (Milakov and
    Gimelshein, "Online normalizer calculation for softmax", 2018).
    """
    lowest = torch.finfo(torch.float32).min  # finite, so that no difference of two scores is NaN
    best, sense_ids = torch.full_like(states[:, 0], lowest), torch.full_like(starts, -1)
    total, mean, scored = torch.zeros_like(states[:, :1]), torch.zeros_like(states), states.new_zeros(())
    with torch.autocast(states.device.type, enabled=False):
        for first in range(0, most, STEP):
            # The senses of this step, and their scores.
            numbered = torch.arange(first, min(first + STEP, most), device=starts.device)
            is_padding = numbered >= sizes[:, None]
            rows = (starts[:, None] + numbered).masked_fill(is_padding, 0)
            block = Block(rows, senses.take(rows, states.device), rows, is_padding[:, None])
            scores = score_block(states[:, None], block, senses.similarity).scores[:, 0]
            scored = scored + scores.detach().masked_fill(is_padding, 0).sum()

            # What they change.
            places = scores.argmax(-1)
            highest = scores.gather(-1, places[:, None])[:, 0]
            sense_ids = torch.where(highest > best, places + first, sense_ids)
            highest = torch.maximum(best, highest)
            if temperature is not None:
                shrinking = ((best - highest) / temperature).exp()[:, None]
                weights = ((scores - highest[:, None]) / temperature).exp()
                total = total * shrinking + weights.sum(-1, keepdim=True)
                mean = mean * shrinking + torch.bmm(weights[:, None], block.senses)[:, 0]
            best = highest
    return sense_ids, mean / total.clamp_min(1), scored  # the best sense has weight 1; no senses: 0
