"""Scores, assignment and cross-entropy over ragged senses: the only code that knows the layout.

A dictionary is `senses [total_senses, hidden]` and `offsets [vocab + 1]`; the senses of token t are the rows
`offsets[t]:offsets[t + 1]`. Tokens that have equally many senses and stand at equally many positions of a batch are looked up in one
batched product, `[tokens, positions, hidden]` with `[tokens, senses, hidden]`: frequent tokens have one of their own, rare ones share
theirs, and all scores are dense. So the work is that of the senses that are there, without padding, masks or an index for every pair. On
a GPU, where the number of products counts, tokens that have about equally many share them, padded. The products are planned before the
first of them, so that a GPU is not waited for in between. Everything is computed in float32, whatever the dtype of the table, under
autocast too.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .configuration_sense_embedding import SIMILARITIES


class Blocking(NamedTuple):
    """How the tokens of a batch are put into products.

    Attributes:
        elements: what the vectors, the senses and the scores of one product may take each, in elements of float32, whatever the size of
            batch and dictionary. Only a single vector or the senses of a single token may exceed it.
        base: tokens share a product if both how many senses they have and at how many positions they stand are the same (1), or lie
            between the same two powers of the base (2, 4 or 8); those with fewer are padded.
    """

    elements: int
    base: int


# 4 MB stay in the cache of a CPU. A GPU takes as long for a product of thousands of numbers as for one of millions: the uneven senses of
# benchmarks/lookup.py take 179 products without padding and 9 with it, of 2.7 times the work.
CPU, GPU = Blocking(1 << 20, 1), Blocking(1 << 24, 8)


class Block(NamedTuple):
    """Tokens of one kind.

    Attributes:
        positions: `[tokens, count]`, where they stand; the number of all positions where a token has fewer of them.
        senses: `[tokens, size, hidden]`, float32, those that they have.
        rows: of these in the table, `[tokens, size]` or, of a single token, a slice.
        is_padding: `[tokens, 1, size]`, senses of others in the place of those that a token does not have; None: there are none.
    """

    positions: Tensor
    senses: Tensor
    rows: Tensor | slice
    is_padding: Tensor | None


class Assignment(NamedTuple):
    """`vectors [n, hidden]` in the dtype of the input; `sense_ids [n]`, int64, -1 where the token has no sense."""

    vectors: Tensor
    sense_ids: Tensor


def _blocks(token_ids: Tensor, senses: Tensor, offsets: Tensor, scales: Tensor | None) -> Iterator[Block]:
    """All positions whose token has senses, in blocks. A negative token has none. All tensors are on one device."""
    elements, base = _blocking(token_ids)
    width, total = senses.shape[1], len(token_ids)
    tokens, inverse, counts = token_ids.unique(return_inverse=True, return_counts=True)
    ids = tokens.clamp_min(0)
    starts = offsets[ids]
    sizes = (offsets[ids + 1] - starts).masked_fill_(tokens < 0, 0)
    kinds, order = (_kinds(sizes, base) * (total + 1) + _kinds(counts, base)).sort(stable=True)
    starts, sizes, counts = starts[order], sizes[order], counts[order]
    _, kind, numbers = kinds.unique_consecutive(return_inverse=True, return_counts=True)
    wide, many = (torch.zeros_like(numbers).scatter_reduce_(0, kind, each, "amax") for each in (sizes, counts))
    # The positions of one token after the other, with room for as many as any token of its kind has.
    owner, in_order = order.argsort()[inverse].sort(stable=True)
    spare = many[kind] - counts
    positions = in_order.new_full((base * total,), total)
    positions[torch.arange(total, device=positions.device) + (spare.cumsum(0) - spare)[owner]] = in_order
    known = torch.stack([starts, sizes, counts], dim=1).tolist()
    token = position = 0
    for number, size, count in torch.stack([numbers, wide, many], dim=1).tolist():
        where = positions[position : position + number * count].view(number, count)
        step = max(1, elements // max(size * count, size * width, count * width))
        for first in range(0, number if size else 0, step):
            some, at, is_padding = (
                slice(token + first, token + min(first + step, number)),
                where[first : first + step],
                None,
            )
            if len(at) == 1:  # a frequent token, and a view of its senses instead of a copy
                start, own_size, own_count = known[some.start]
                rows: Tensor | slice = slice(start, start + own_size)
                at = at[:, :own_count]
            else:
                numbered = torch.arange(size, device=starts.device)
                rows = starts[some, None] + numbered
                if base > 1 and size > 1:
                    rows.clamp_max_(len(senses) - 1)
                    is_padding = (numbered >= sizes[some, None])[:, None]
            own = _senses(rows, senses, scales, senses.device).view(len(at), -1, width)
            for part in at.split(max(1, elements // max(size, width)), dim=1):
                yield Block(part, own, rows, is_padding)
        token, position = token + number, position + number * count


def _kinds(numbers: Tensor, base: int) -> Tensor:
    """By powers of the base, 0 alone; by 1 each number is its own."""
    if base == 1:
        return numbers
    powers = base ** torch.arange(20, device=numbers.device)  # 8^19 is still an int64
    return torch.bucketize(numbers, powers) + (numbers > 0)


def _blocking(tensor: Tensor) -> Blocking:
    return CPU if tensor.is_cpu else GPU


def _with_room(rows: Tensor) -> Tensor:
    """`[n, width]`, with a row of zeros at the end for the positions that blocks are padded with, if they are."""
    return rows if _blocking(rows).base == 1 else F.pad(rows, (0, 0, 0, 1))


def _senses(rows: Tensor | slice, senses: Tensor, scales: Tensor | None, device: torch.device) -> Tensor:
    """Rows of the table, `[*rows, hidden]`, float32."""

    def take(table: Tensor) -> Tensor:  # an embedding copies rows several times faster than an index on a CPU
        return (table[rows] if isinstance(rows, slice) else F.embedding(rows, table)).to(device).float()

    return take(senses) if scales is None else take(senses) * take(scales[:, None])


def _local(
    token_ids: Tensor, senses: Tensor, offsets: Tensor, scales: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Tokens and a dictionary on the device of the tokens: these, or what :func:`_fetch` makes of them."""
    if token_ids.device == senses.device == offsets.device:
        return token_ids, senses, offsets, scales
    return _fetch(token_ids, senses, offsets, scales)


def _fetch(
    token_ids: Tensor, senses: Tensor, offsets: Tensor, scales: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The dictionary of these tokens alone, on their device, and their numbers in it `[n]`. Its senses are sent all at once, in the dtype
    of the table: a GPU would wait for those of each block."""
    device = token_ids.device
    tokens, numbers = token_ids.unique(return_inverse=True)
    ids, has_none = tokens.clamp_min(0).to(offsets.device), (tokens < 0).to(offsets.device)
    starts = offsets[ids]
    sizes = (offsets[ids + 1] - starts).masked_fill(has_none, 0)
    own_offsets = F.pad(sizes.cumsum(0), (1, 0))
    rows = (starts - own_offsets[:-1]).repeat_interleave(sizes)
    rows = (rows + torch.arange(len(rows), device=rows.device)).to(senses.device)

    def take(table: Tensor) -> Tensor:
        is_pinned = table.is_cpu and device.type == "cuda"  # pageable memory is sent several times more slowly
        found = torch.empty(len(rows), *table.shape[1:], dtype=table.dtype, device=table.device, pin_memory=is_pinned)
        return torch.index_select(table, 0, rows, out=found).to(device, non_blocking=is_pinned)

    return numbers, take(senses), own_offsets.to(device), None if scales is None else take(scales)


def _scores(vectors: Tensor, own: Tensor, is_padding: Tensor | None, similarity: str) -> tuple[Tensor, Tensor, Tensor]:
    """`[tokens, count, hidden]` and `[tokens, size, hidden] -> [tokens, count, size]`, -inf for padding; and the queries and keys that
    were multiplied."""
    queries, keys = vectors, own
    if similarity == "l2":
        squares = torch.linalg.vector_norm(own, dim=-1).square()
        scores = torch.baddbmm(squares[:, None], queries, keys.mT, beta=-1, alpha=2)
    elif similarity == "cosine":
        queries, keys = F.normalize(vectors, dim=-1), F.normalize(own, dim=-1)
        scores = 2 * torch.bmm(queries, keys.mT)
    elif similarity == "dot":
        scores = torch.bmm(queries, keys.mT)
    else:
        raise ValueError(f"unknown similarity {similarity!r}: choose one of {', '.join(SIMILARITIES)}")
    return scores if is_padding is None else scores.masked_fill_(is_padding, -torch.inf), queries, keys


def assign_senses(
    hidden: Tensor,
    token_ids: Tensor,
    senses: Tensor,
    offsets: Tensor,
    similarity: str = "l2",
    temperature: float | None = None,
    scales: Tensor | None = None,
) -> Assignment:
    """Replaces every vector by a sense of its token.

    Args:
        hidden: `[n, hidden]`, any float dtype. token_ids: `[n]`, below the vocabulary size; a negative one has no senses.
        senses: `[total_senses, hidden]`. offsets: `[vocab + 1]`, int64. Both may be on another device than `hidden`, if no gradient is
            wanted: the senses of the batch's tokens are then copied to that of `hidden`.
        similarity: `l2` scores `2 h.s - |s|^2`, which is `-|h - s|^2` up to a constant of h; `cosine` scores `2 cos(h, s)`, which is
            the same for unit vectors; `dot` scores `h.s`.
        temperature: `None` takes the best sense (hard), the first one of equals; a number in units of the score takes the mean of the
            senses under `softmax(score / temperature)` (soft): for l2 the posterior mean of a Gaussian mixture of variance
            `temperature / 2`.
        scales: `[total_senses]`, of a quantised table: the senses are then `senses * scales[:, None]`.

    Returns:
        The vectors and the index of each position's best sense among its token's own. A token without senses keeps its vector and
        has index -1. Differentiable in the senses alone.
    """
    token_ids, senses, offsets, scales = _local(token_ids, senses, offsets, scales)
    if temperature is not None:
        return Assignment(*_SoftAssignment.apply(hidden, token_ids, senses, offsets, similarity, temperature, scales))
    vectors, states = hidden.detach().clone(), _with_room(hidden.detach())
    sense_ids = token_ids.new_full((len(states),), -1, dtype=torch.int64)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        for positions, own, _, is_padding in _blocks(token_ids, senses, offsets, scales):
            sense_ids[positions] = _scores(F.embedding(positions, states).float(), own, is_padding, similarity)[
                0
            ].argmax(-1)
    sense_ids = sense_ids[: len(token_ids)]
    found = (sense_ids >= 0).nonzero().squeeze(-1)
    for positions in found.split(max(1, _blocking(hidden).elements // hidden.shape[1])):
        chosen = look_up(token_ids[positions], sense_ids[positions], senses, offsets, scales)
        vectors[positions] = chosen.to(vectors.dtype)
    return Assignment(vectors, sense_ids)


class _SoftAssignment(torch.autograd.Function):
    """The mean of the senses under `softmax(scores / temperature)`. For the gradient to the senses, as parts of the mean and as what the
    scores are of, everything is computed again, block by block, instead of being kept."""

    @staticmethod
    def forward(ctx, hidden, token_ids, senses, offsets, similarity, temperature, scales):
        states = _with_room(hidden)
        vectors = states.clone()
        sense_ids = token_ids.new_full((len(states),), -1, dtype=torch.int64)
        with torch.autocast(hidden.device.type, enabled=False):
            for positions, own, _, is_padding in _blocks(token_ids, senses, offsets, scales):
                scores, _, _ = _scores(F.embedding(positions, states).float(), own, is_padding, similarity)
                sense_ids[positions] = scores.argmax(-1)
                vectors[positions] = torch.bmm((scores / temperature).softmax(-1), own).to(vectors.dtype)
        if ctx.needs_input_grad[2]:
            ctx.save_for_backward(hidden, token_ids, senses, offsets)
        ctx.similarity, ctx.temperature = similarity, temperature
        vectors, sense_ids = (
            rows[: len(token_ids)].detach() for rows in (vectors, sense_ids)
        )  # not views: they may be changed in place
        ctx.mark_non_differentiable(sense_ids)
        return vectors, sense_ids

    @staticmethod
    def backward(ctx, grad_vectors, _):
        if not ctx.needs_input_grad[2]:
            return (None,) * 7
        hidden, token_ids, senses, offsets = ctx.saved_tensors
        states, grad_vectors, gradient = _with_room(hidden), _with_room(grad_vectors), torch.zeros_like(senses)
        with torch.autocast(hidden.device.type, enabled=False):
            for positions, own, rows, is_padding in _blocks(token_ids, senses, offsets, None):
                own = own.requires_grad_()
                with torch.enable_grad():
                    scores, _, _ = _scores(F.embedding(positions, states).float(), own, is_padding, ctx.similarity)
                    mean = torch.bmm((scores / ctx.temperature).softmax(-1), own)
                (part,) = torch.autograd.grad(mean, own, F.embedding(positions, grad_vectors).float())
                if is_padding is not None:
                    part.masked_fill_(is_padding.mT, 0)  # 0 already, but for gradients that are not finite
                if isinstance(rows, slice):
                    gradient[rows] += part[0]
                else:
                    gradient.index_add_(0, rows.flatten(), part.flatten(0, 1))
        return None, None, gradient, None, None, None, None


def look_up(
    token_ids: Tensor, sense_ids: Tensor, senses: Tensor, offsets: Tensor, scales: Tensor | None = None
) -> Tensor:
    """The senses `[n, hidden]`, float32, with the numbers `sense_ids [n]` among those of the tokens `token_ids [n]`."""
    rows = offsets[token_ids.to(offsets.device)].to(senses.device) + sense_ids.to(senses.device)
    return _senses(rows, senses, scales, token_ids.device)


def sense_posterior(
    hidden: Tensor,
    token_ids: Tensor,
    senses: Tensor,
    offsets: Tensor,
    similarity: str = "l2",
    temperature: float = 1.0,
    scales: Tensor | None = None,
    top_k: int = 1,
) -> tuple[Tensor, Tensor]:
    """The most probable senses under `softmax(scores / temperature)` over each token's own.

    Args:
        top_k: how many of them are kept; the others' probability is shared out among those in proportion.
        others: as in :func:`assign_senses`.

    Returns:
        Sense ids `[n, top_k]`, the best first, and their probabilities `[n, top_k]`, float32. A token with fewer senses has -1 and 0 in
        the places that are left.
    """
    token_ids, senses, offsets, scales = _local(token_ids, senses, offsets, scales)
    states = _with_room(hidden.detach())
    sense_ids = torch.full((len(states), top_k), -1, device=hidden.device)
    probabilities = torch.zeros(len(states), top_k, device=hidden.device)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        for positions, own, _, is_padding in _blocks(token_ids, senses, offsets, scales):
            scores, _, _ = _scores(F.embedding(positions, states).float(), own, is_padding, similarity)
            kept = scores.topk(min(top_k, scores.shape[-1]), dim=-1)
            sense_ids[positions, : kept.indices.shape[-1]] = kept.indices.masked_fill_(kept.values == -torch.inf, -1)
            probabilities[positions, : kept.indices.shape[-1]] = (kept.values / temperature).softmax(-1)
    return sense_ids[: len(token_ids)], probabilities[: len(token_ids)]


class _SenseCrossEntropy(torch.autograd.Function):
    """The loss with its gradient formed in the forward pass: senses are constants, and the scores are needed only once."""

    @staticmethod
    def forward(ctx, hidden, token_ids, sense_ids, probabilities, senses, offsets, similarity, temperature, scales):
        states, sense_ids, probabilities = (
            _with_room(hidden),
            _with_room(sense_ids.clamp_min(0)),
            _with_room(probabilities),
        )
        gradient = torch.zeros_like(states, dtype=torch.float32)
        predicted = token_ids.new_full((len(states),), -1)
        loss = gradient.new_zeros(())
        with torch.autocast(hidden.device.type, enabled=False):
            for positions, own, _, is_padding in _blocks(token_ids, senses, offsets, scales):
                vectors, labels = F.embedding(positions, states).float(), sense_ids[positions]
                scores, queries, keys = _scores(vectors, own, is_padding, similarity)
                predicted[positions] = scores.argmax(-1)
                log_probabilities = (scores / temperature).log_softmax(-1)
                weights = probabilities[positions]  # 0 in places without a sense
                target = torch.zeros_like(scores).scatter_add_(-1, labels, weights)
                loss -= (weights * log_probabilities.gather(-1, labels)).sum()
                slope = torch.bmm(log_probabilities.exp() * weights.sum(-1, keepdim=True) - target, keys)
                slope *= (1 if similarity == "dot" else 2) / temperature
                if similarity == "cosine":  # through the normalization
                    slope -= queries * (queries * slope).sum(-1, keepdim=True)
                    slope /= torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_min(1e-12)
                gradient[positions] = slope
        ctx.save_for_backward(gradient[: len(token_ids)])
        predicted = predicted[: len(token_ids)].detach()
        ctx.mark_non_differentiable(predicted)
        return loss, predicted

    @staticmethod
    def backward(ctx, grad_loss, _):
        return grad_loss * ctx.saved_tensors[0], *[None] * 8


def sense_cross_entropy(
    hidden: Tensor,
    token_ids: Tensor,
    sense_ids: Tensor,
    senses: Tensor,
    offsets: Tensor,
    similarity: str = "l2",
    temperature: float = 1.0,
    scales: Tensor | None = None,
    probabilities: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum over positions of the cross-entropy between the teacher's choice and `softmax(scores / temperature)` over each token's own
    senses: `-log softmax(scores / temperature)[sense_id]`, or, for a choice that is a distribution, its mean under that.

    Args:
        hidden: `[n, hidden]`, the student's vectors; the gradient flows to them alone.
        token_ids: `[n]`. sense_ids: `[n]`, the teacher's choice among the token's own senses, or -1 for a position not to be counted;
            with probabilities `[n, k]`, as :func:`sense_posterior` returns them.
        senses, offsets, similarity, scales: as in :func:`assign_senses`. temperature: in units of the score.
        probabilities: `[n, k]`, of those senses; they sum to the weight of the position, 1 without one.

    Returns:
        The summed loss (float32 scalar) and the student's own choices `[n]` (-1 where not counted).

    Raises:
        ValueError: a sense id is not one of its token's senses.
    """
    sense_ids = sense_ids.view(len(token_ids), -1)
    if probabilities is None:
        probabilities = torch.ones_like(sense_ids, dtype=torch.float32)
    ids = token_ids.clamp_min(0).to(offsets.device)
    sizes = (offsets[ids + 1] - offsets[ids]).to(sense_ids.device).masked_fill(token_ids < 0, 0)
    too_large = sense_ids.amax(-1) >= sizes
    if (too_large & (sense_ids[:, 0] >= 0)).any():
        place = int((too_large & (sense_ids[:, 0] >= 0)).nonzero()[0])
        raise ValueError(
            f"sense id {int(sense_ids[place].amax())} of token {int(token_ids[place])} is not in the dictionary: the sense ids were made "
            "with another dictionary; encode the texts again"
        )
    counted, senses, offsets, scales = _local(token_ids.masked_fill(sense_ids[:, 0] < 0, -1), senses, offsets, scales)
    return _SenseCrossEntropy.apply(
        hidden, counted, sense_ids, probabilities, senses, offsets, similarity, temperature, scales
    )


def store_senses(senses: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A table `[total_senses, hidden]` in the dtype that it is stored in; for int8 also what each row must be multiplied with
    `[total_senses]`: a sense has its largest value at 127.

    Raises:
        ValueError: a number is too large for the dtype.
    """
    if dtype != torch.int8:
        table = senses.to(dtype)
        if not table.isfinite().all():
            largest = float(senses.float().abs().max())
            raise ValueError(
                f"the senses reach {largest:.3g}, too large for {str(dtype).removeprefix('torch.')}: choose bfloat16 or float32"
            )
        return table, None
    scales = senses.float().abs().amax(1) / 127
    return (senses.float() / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round().to(dtype), scales
