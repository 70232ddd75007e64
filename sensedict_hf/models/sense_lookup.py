"""Assignment, posterior and cross-entropy over the senses of each token.

Each function goes through the batch block by block, see :mod:`sense_blocks`. Scores are computed in float32, whatever
the dtype of the table and under autocast too.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .arguments import is_traced
from .sense_blocks import (
    Block,
    RaggedSenses,
    Scores,
    blocking_for,
    iterate_blocks,
    pad_positions,
    score_block,
    to_one_device,
)
from .static_lookup import assign_padded, is_padding_faster
from .validation import check_finite

__all__ = [
    "Assignment",
    "RaggedSenses",
    "assign_senses",
    "look_up",
    "sense_cross_entropy",
    "sense_posterior",
    "store_senses",
]


class Assignment(NamedTuple):
    """The result of :func:`assign_senses`.

    Attributes:
        vectors: `[n, hidden]`, in the dtype of the input.
        sense_ids: `[n]`, int64, the index of the best sense among the senses of the token; -1 if it has none.
    """

    vectors: Tensor
    sense_ids: Tensor


def _scored_blocks(states: Tensor, token_ids: Tensor, senses: RaggedSenses) -> Iterator[tuple[Block, Scores]]:
    """Score the vectors of a batch, `[n, hidden]`, block by block.

    Raises:
        ValueError: After the last block: a vector or a sense is NaN or infinite.
    """
    # The sum of all scores is finite only if all numbers are. It is read once, as a GPU has to wait for that.
    total = torch.zeros((), dtype=torch.float32, device=states.device)
    for block in iterate_blocks(token_ids, senses):
        found = score_block(F.embedding(block.positions, states).float(), block, senses.similarity)
        scores = found.scores if block.is_padding is None else found.scores.masked_fill(block.is_padding, 0)
        total += scores.sum()
        yield block, found
    if total.isfinite():
        return
    for block in iterate_blocks(token_ids, senses):  # the scores of large numbers may be infinite, too
        if not F.embedding(block.positions, states).isfinite().all():
            raise ValueError(
                "a hidden state is NaN or infinite, so no sense fits it: load the model in another dtype or, if it is "
                "being trained, choose a lower learning rate"
            )
        check_finite(block.senses.flatten(0, 1))


def assign_senses(
    hidden: Tensor,
    token_ids: Tensor,
    senses: RaggedSenses,
    temperature: float | None = None,
    most: int | None = None,
) -> Assignment:
    """Replace every vector by a sense of its token, or by the mean of its token's senses.

    The score of a vector `h` and a sense `s` depends on `senses.similarity`:

    - `l2`: `2 h.s - |s|^2`, which is `-|h - s|^2` up to a constant of `h`;
    - `cosine`: `2 cos(h, s)`, which is the same for unit vectors;
    - `dot`: `h.s`.

    The result is differentiable with respect to the table alone.

    Args:
        hidden: `[n, hidden]`, the vectors, in any float dtype.
        token_ids: `[n]`, below the vocabulary size; a negative one has no senses.
        senses: The dictionary. It may be on another device than `hidden` if no gradient is needed: the senses of the
            batch's tokens are then copied.
        temperature: None for hard assignment: the best sense, of equal ones the first. A number, in units of the
            score, for soft assignment: the mean of the senses under `softmax(score / temperature)`. For `l2` this is
            the posterior mean of a Gaussian mixture of variance `temperature / 2`.
        most: The largest number of senses of a token. If it is small, the positions are padded to it, because that
            is faster, see :mod:`static_lookup`. None: the positions are grouped by token.

    Returns:
        The vectors and the index of each position's best sense. A token without senses keeps its vector and has index
        -1.

    Raises:
        ValueError: The similarity is unknown.
    """
    if most is not None and is_padding_faster(hidden, senses, most):
        vectors, sense_ids, total = assign_padded(hidden.detach(), token_ids, senses, most, temperature)
        if is_traced() or bool(total.isfinite()):
            return Assignment(vectors, sense_ids)  # else the other form finds out what is not finite
    token_ids, senses = to_one_device(token_ids, senses)
    if temperature is not None:
        return Assignment(*_SoftAssignment.apply(hidden, token_ids, temperature, *senses))

    # Find the best sense of each position.
    vectors, states = hidden.detach().clone(), pad_positions(hidden.detach())
    sense_ids = token_ids.new_full((len(states),), -1, dtype=torch.int64)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        for block, (scores, _, _) in _scored_blocks(states, token_ids, senses):
            sense_ids[block.positions] = scores.argmax(-1)
    sense_ids = sense_ids[: len(token_ids)]

    # Copy the senses, a bounded number at a time. Outside no_grad: the gradient flows to the table.
    found = (sense_ids >= 0).nonzero().squeeze(-1)
    for positions in found.split(max(1, blocking_for(hidden).elements // hidden.shape[1])):
        chosen = look_up(token_ids[positions], sense_ids[positions], senses)
        vectors[positions] = chosen.to(vectors.dtype)
    return Assignment(vectors, sense_ids)


class _SoftAssignment(torch.autograd.Function):
    """The mean of the senses under `softmax(scores / temperature)`, differentiable with respect to the table.

    A sense enters both the mean and the scores. The backward pass computes both again, block by block, instead of
    keeping them.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, token_ids: Tensor, temperature: float, *fields: Any
    ) -> tuple[Tensor, Tensor]:
        senses = RaggedSenses(*fields)
        states = pad_positions(hidden)
        vectors = states.clone()
        sense_ids = token_ids.new_full((len(states),), -1, dtype=torch.int64)
        with torch.autocast(hidden.device.type, enabled=False):
            for block, (scores, _, _) in _scored_blocks(states, token_ids, senses):
                sense_ids[block.positions] = scores.argmax(-1)
                mean = torch.bmm((scores / temperature).softmax(-1), block.senses)
                vectors[block.positions] = mean.to(vectors.dtype)
        if ctx.needs_input_grad[3]:
            ctx.save_for_backward(hidden, token_ids, senses.table, senses.offsets)
        ctx.similarity, ctx.temperature = senses.similarity, temperature
        # Detached, so that these are not views and may be changed in place.
        vectors, sense_ids = vectors[: len(token_ids)].detach(), sense_ids[: len(token_ids)].detach()
        ctx.mark_non_differentiable(sense_ids)
        return vectors, sense_ids

    @staticmethod
    def backward(ctx: Any, grad_vectors: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.needs_input_grad[3]:
            return (None,) * 7
        hidden, token_ids, table, offsets = ctx.saved_tensors
        senses = RaggedSenses(table, offsets, ctx.similarity)  # a table that is learned has no scales
        states, grad_vectors, gradient = pad_positions(hidden), pad_positions(grad_vectors), torch.zeros_like(table)
        with torch.autocast(hidden.device.type, enabled=False):
            for block in iterate_blocks(token_ids, senses):
                own = block.senses.requires_grad_()
                with torch.enable_grad():
                    scores = score_block(F.embedding(block.positions, states).float(), block, ctx.similarity).scores
                    mean = torch.bmm((scores / ctx.temperature).softmax(-1), own)
                (part,) = torch.autograd.grad(mean, own, F.embedding(block.positions, grad_vectors).float())
                if block.is_padding is not None:
                    part.masked_fill_(block.is_padding.mT, 0)  # 0 already, except for gradients that are not finite
                if isinstance(block.rows, slice):
                    gradient[block.rows] += part[0]
                else:
                    gradient.index_add_(0, block.rows.flatten(), part.flatten(0, 1))
        return None, None, None, gradient, None, None, None


def look_up(token_ids: Tensor, sense_ids: Tensor, senses: RaggedSenses) -> Tensor:
    """Return the senses with the given ids, `[n, hidden]`, float32, on the device of `token_ids`.

    Args:
        token_ids: `[n]`.
        sense_ids: `[n]`, the index of a sense among the senses of its token.
        senses: The dictionary, on any device.
    """
    table, offsets = senses.table, senses.offsets
    rows = offsets[token_ids.to(offsets.device)].to(table.device) + sense_ids.to(table.device)
    return senses.take(rows, token_ids.device)


def sense_posterior(
    hidden: Tensor, token_ids: Tensor, senses: RaggedSenses, temperature: float = 1.0, top_k: int = 1
) -> tuple[Tensor, Tensor]:
    """Find the most probable senses of each position under `softmax(scores / temperature)` over its token's senses.

    Args:
        hidden: `[n, hidden]`, the vectors, in any float dtype.
        token_ids: `[n]`, below the vocabulary size; a negative one has no senses.
        senses: The dictionary, on any device.
        temperature: Temperature of the softmax, in units of the score, see :func:`assign_senses`.
        top_k: How many senses to return for each position. Their probabilities are divided by their sum.

    Returns:
        Sense ids `[n, top_k]`, the most probable first, and their probabilities `[n, top_k]`, float32. A token with
        fewer senses has id -1 and probability 0 in the remaining places.

    Raises:
        ValueError: The similarity is unknown.
    """
    token_ids, senses = to_one_device(token_ids, senses)
    states = pad_positions(hidden.detach())
    sense_ids = torch.full((len(states), top_k), -1, device=hidden.device)
    probabilities = torch.zeros(len(states), top_k, dtype=torch.float32, device=hidden.device)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        for block, (scores, _, _) in _scored_blocks(states, token_ids, senses):
            kept = scores.topk(min(top_k, scores.shape[-1]), dim=-1)
            places = slice(kept.indices.shape[-1])
            sense_ids[block.positions, places] = kept.indices.masked_fill_(kept.values == -torch.inf, -1)
            probabilities[block.positions, places] = (kept.values / temperature).softmax(-1)
    return sense_ids[: len(token_ids)], probabilities[: len(token_ids)]


class _SenseCrossEntropy(torch.autograd.Function):
    """The loss of :func:`sense_cross_entropy`, with its gradient.

    The senses are constants, so the forward pass computes the gradient too: it needs the scores only once and does not
    keep them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        token_ids: Tensor,
        sense_ids: Tensor,
        probabilities: Tensor,
        temperature: float,
        *fields: Any,
    ) -> tuple[Tensor, Tensor]:
        senses = RaggedSenses(*fields)
        states, probabilities = pad_positions(hidden), pad_positions(probabilities)
        sense_ids = pad_positions(sense_ids.clamp_min(0))
        gradient = torch.zeros_like(states, dtype=torch.float32)
        predicted = token_ids.new_full((len(states),), -1)
        loss = gradient.new_zeros(())
        with torch.autocast(hidden.device.type, enabled=False):
            for block, (scores, queries, keys) in _scored_blocks(states, token_ids, senses):
                positions = block.positions
                labels, weights = sense_ids[positions], probabilities[positions]  # 0 in places without a sense
                predicted[positions] = scores.argmax(-1)

                # The loss of the block.
                log_probabilities = (scores / temperature).log_softmax(-1)
                loss -= (weights * log_probabilities.gather(-1, labels)).sum()

                # Its gradient to the scores is `weight * probability - target`; from there to the queries and to the
                # vectors.
                target = torch.zeros_like(scores).scatter_add_(-1, labels, weights)
                slope = torch.bmm(log_probabilities.exp() * weights.sum(-1, keepdim=True) - target, keys)
                slope *= (1 if senses.similarity == "dot" else 2) / temperature
                if senses.similarity == "cosine":  # through the normalization
                    slope -= queries * (queries * slope).sum(-1, keepdim=True)
                    slope /= torch.linalg.vector_norm(
                        F.embedding(positions, states).float(), dim=-1, keepdim=True
                    ).clamp_min(1e-12)
                gradient[positions] = slope
        ctx.save_for_backward(gradient[: len(token_ids)])
        predicted = predicted[: len(token_ids)].detach()
        ctx.mark_non_differentiable(predicted)
        return loss, predicted

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad_loss * gradient, *[None] * 8


def sense_cross_entropy(
    hidden: Tensor,
    token_ids: Tensor,
    sense_ids: Tensor,
    senses: RaggedSenses,
    temperature: float = 1.0,
    probabilities: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum the cross-entropy between the teacher's choices and the student's `softmax(scores / temperature)` over each
    token's senses.

    The loss of a position is `-log softmax(scores / temperature)[sense_id]`. With `probabilities` it is the sum of
    these terms over the k sense ids, each weighted by its probability.

    Args:
        hidden: `[n, hidden]`, the student's vectors. The gradient flows to them alone.
        token_ids: `[n]`, below the vocabulary size; a negative one has no senses.
        sense_ids: `[n]`, the teacher's choice among the token's senses, -1 for a position that is not counted. With
            `probabilities` `[n, k]`, as :func:`sense_posterior` returns them.
        senses: The dictionary, on any device.
        temperature: Temperature of the softmax, in units of the score, see :func:`assign_senses`.
        probabilities: `[n, k]`, the probabilities of `sense_ids`. Their sum is the weight of the position. None: the
            weight is 1.

    Returns:
        The summed loss, a float32 scalar, and the student's own choices, `[n]`, -1 where a position is not counted.

    Raises:
        ValueError: A sense id is not below the number of its token's senses, or the similarity is unknown.
    """
    sense_ids = sense_ids[:, None] if sense_ids.dim() == 1 else sense_ids
    if probabilities is None:
        probabilities = torch.ones_like(sense_ids, dtype=torch.float32)
    _, sizes = senses.spans(token_ids)
    is_counted = sense_ids[:, 0] >= 0
    is_wrong = is_counted & (sense_ids.amax(-1) >= sizes.to(sense_ids.device))
    if is_wrong.any():
        place = int(is_wrong.nonzero()[0])
        raise ValueError(
            f"sense id {int(sense_ids[place].amax())} of token {int(token_ids[place])} is not in the dictionary, "
            f"where this token has {int(sizes[place])} senses: the sense ids were made with another dictionary; "
            "encode the texts again"
        )
    counted, senses = to_one_device(token_ids.masked_fill(~is_counted, -1), senses)
    loss, choices = _SenseCrossEntropy.apply(hidden, counted, sense_ids, probabilities, temperature, *senses)
    return loss, choices


def store_senses(senses: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Convert senses to the dtype in which they are stored.

    Args:
        senses: `[total_senses, hidden]`, in a float dtype.
        dtype: A float dtype or int8.

    Returns:
        The table, and the scale of each row, `[total_senses]`, float32, for int8; otherwise None. The largest absolute
        value in an int8 row is 127; a row of zeros stays zero.

    Raises:
        ValueError: A number is not finite, or too large for the dtype.
    """
    check_finite(senses)
    if dtype != torch.int8:
        table = senses.to(dtype)
        if not table.isfinite().all():
            largest = float(senses.float().abs().max())
            raise ValueError(
                f"the senses reach {largest:.3g}, too large for {str(dtype).removeprefix('torch.')}: "
                "choose bfloat16 or float32"
            )
        return table, None
    # clamp_min, because the scale of a row of zeros is 0.
    scales = senses.float().abs().amax(1) / 127
    return (senses.float() / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round().to(dtype), scales
