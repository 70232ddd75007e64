"""Scores, assignment and cross-entropy over ragged senses: the only code that knows the layout.

A dictionary is `senses [total_senses, hidden]` and `offsets [vocab + 1]`; the senses of token t are the rows
`offsets[t]:offsets[t + 1]`. Positions are sorted by token, so that each distinct token is one dense product of its positions with its
own senses, and the scores of all (position, sense) pairs lie in one flat array, row after row: the work is that of the senses that
are there, without padding. Everything is computed in float32, whatever the dtype of the table.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .configuration_sense_embedding import SIMILARITIES

# Where small dense products one after the other are fastest. Elsewhere the two vectors of every pair are gathered, so that a GPU need
# not be waited for at each token.
LOOP_DEVICES = ("cpu",)
# What a chunk of positions may take, in elements of float32: its scores and the senses of its tokens (16 MB each), or, where they are
# gathered, the vectors of its pairs (256 MB), whatever the size of batch and dictionary. Only a single position may exceed it.
LOOP_ELEMENTS = 1 << 22
GATHER_ELEMENTS = 1 << 26


class Assignment(NamedTuple):
    """`vectors [n, hidden]` in the dtype of the input; `sense_ids [n]`, int64, -1 where the token has no sense."""

    vectors: Tensor
    sense_ids: Tensor


class _Chunk:
    """Positions sorted by token, together with the senses of their tokens.

    Attributes:
        positions: `[m]`, which rows of the caller's batch these are.
        lengths: `[m]`, how many senses each position has; the pairs of position i are `ends[i] - lengths[i]` to `ends[i]`.
        owner: `[pairs]`, the position of each pair.
        rows: `[total]`, the sense of each row of `table`; `table`: `[total, hidden]`, float32.
    """

    def __init__(self, positions: Tensor, token_ids: Tensor, senses: Tensor, offsets: Tensor, scales: Tensor | None):
        device = token_ids.device
        tokens, counts = token_ids[positions].unique_consecutive(return_counts=True)
        starts = offsets[tokens.to(offsets.device)]
        sizes = offsets[tokens.to(offsets.device) + 1] - starts
        rows = concatenated_ranges(starts, sizes).to(senses.device)
        self.table = senses[rows].to(device, torch.float32)
        if scales is not None:
            self.table *= scales[rows].to(device)[:, None]
        sizes = sizes.to(device)
        self.positions = positions
        self.counts, self.sizes = counts, sizes
        self.lengths = sizes.repeat_interleave(counts)
        self.ends = self.lengths.cumsum(0)
        self.owner = torch.arange(len(positions), device=device).repeat_interleave(self.lengths)

    def blocks(self) -> Iterator[tuple[slice, slice, slice]]:
        """For each distinct token: its positions, its rows of the table, its pairs."""
        position = row = pair = 0
        for count, size in zip(self.counts.tolist(), self.sizes.tolist()):
            yield slice(position, position + count), slice(row, row + size), slice(pair, pair + count * size)
            position, row, pair = position + count, row + size, pair + count * size

    def pair_rows(self) -> Tensor:
        """The row of the table that belongs to each pair, `[pairs]`."""
        first = (self.sizes.cumsum(0) - self.sizes).repeat_interleave(self.counts)
        return concatenated_ranges(first, self.lengths)

    def dot(self, queries: Tensor, keys: Tensor) -> Tensor:
        """`[m, hidden] x [total, hidden] -> [pairs]`: the dot product of every pair."""
        if queries.device.type not in LOOP_DEVICES:
            return (queries[self.owner] * keys[self.pair_rows()]).sum(-1)
        flat = queries.new_empty(len(self.owner))
        for at, rows, pairs in self.blocks():
            torch.mm(queries[at], keys[rows].T, out=flat[pairs].view(at.stop - at.start, -1))
        return flat

    def combine(self, weights: Tensor, keys: Tensor) -> Tensor:
        """`[pairs] x [total, hidden] -> [m, hidden]`: for every position the weighted sum of its token's rows."""
        if weights.device.type not in LOOP_DEVICES:
            return self.reduce(weights[:, None] * keys[self.pair_rows()], "sum")
        out = weights.new_empty(len(self.positions), keys.shape[1])
        for at, rows, pairs in self.blocks():
            torch.mm(weights[pairs].view(at.stop - at.start, -1), keys[rows], out=out[at])
        return out

    def reduce(self, flat: Tensor, how: str) -> Tensor:
        """`[pairs, ...] -> [m, ...]`, without atomics."""
        return torch.segment_reduce(flat, how, lengths=self.lengths, axis=0, unsafe=True)

    def argmax(self, flat: Tensor) -> Tensor:
        """`[pairs] -> [m]`: the best sense of every position, the first one of equals, counted from its token's first sense."""
        best = self.reduce(flat, "max")
        index = torch.arange(len(flat), device=flat.device) - (self.ends - self.lengths)[self.owner]
        index.masked_fill_(flat < best[self.owner], len(flat))
        return torch.full_like(self.ends, len(flat)).scatter_reduce_(0, self.owner, index, "amin")

    def log_softmax(self, flat: Tensor) -> Tensor:
        """`[pairs] -> [pairs]`, over the senses of each position."""
        shifted = flat - self.reduce(flat, "max")[self.owner]
        return shifted - self.reduce(shifted.exp(), "sum").log()[self.owner]


def concatenated_ranges(starts: Tensor, sizes: Tensor) -> Tensor:
    """`cat([arange(start, start + size), ...])` for `starts [n]` and `sizes [n]`, without a loop."""
    ends = sizes.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    return torch.arange(total, device=starts.device) + (starts - ends + sizes).repeat_interleave(sizes, output_size=total)


def store_senses(senses: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A table `[total_senses, hidden]` in the dtype that it is stored in; for int8 also what each row must be multiplied with
    `[total_senses]`: a sense has its largest value at 127."""
    if dtype != torch.int8:
        return senses.to(dtype), None
    scales = senses.float().abs().amax(1) / 127
    return (senses.float() / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round().to(dtype), scales


def _chunks(token_ids: Tensor, senses: Tensor, offsets: Tensor, scales: Tensor | None) -> Iterator[_Chunk]:
    """All positions whose token has senses, sorted by token, in chunks of bounded memory; negative tokens have none."""
    ids = token_ids.to(offsets.device).clamp_min(0)
    sizes = (offsets[ids + 1] - offsets[ids]).to(token_ids.device).masked_fill(token_ids < 0, 0)
    order = token_ids.masked_fill(sizes == 0, -1).argsort(stable=True)
    order = order[int((sizes == 0).sum()) :]
    tokens, sizes = token_ids[order], sizes[order]
    is_new = torch.ones_like(tokens, dtype=torch.bool)
    is_new[1:] = tokens[1:] != tokens[:-1]
    pairs, rows = sizes.cumsum(0), (sizes * is_new).cumsum(0)
    loops, width = token_ids.device.type in LOOP_DEVICES, senses.shape[1]
    limit, pair_elements = (LOOP_ELEMENTS, 1) if loops else (GATHER_ELEMENTS, width)
    first = 0
    while first < len(order):
        new_pairs = (pairs[first:] - pairs[first] + sizes[first]) * pair_elements
        new_rows = (rows[first:] - rows[first] + sizes[first]) * width
        fits = int(((new_pairs <= limit) & (new_rows <= limit)).sum())
        last = first + max(1, fits)
        yield _Chunk(order[first:last], token_ids, senses, offsets, scales)
        first = last


def _queries(hidden: Tensor, similarity: str) -> Tensor:
    """What is multiplied with the keys of :func:`_keys`; differentiable."""
    if similarity == "l2":
        return 2 * hidden.float()
    if similarity == "cosine":
        return 2 * F.normalize(hidden.float(), dim=-1)
    if similarity == "dot":
        return hidden.float()
    raise ValueError(f"unknown similarity {similarity!r}: choose one of {', '.join(SIMILARITIES)}")


def _keys(table: Tensor, similarity: str) -> tuple[Tensor, Tensor | None]:
    """The keys `[total, hidden]` and what is subtracted from a row's scores `[total]`, if anything."""
    if similarity == "l2":
        return table, table.square().sum(-1)
    return (F.normalize(table, dim=-1) if similarity == "cosine" else table), None


def _scores(chunk: _Chunk, queries: Tensor, similarity: str) -> tuple[Tensor, Tensor]:
    """The scores of all pairs `[pairs]`, and the keys `[total, hidden]` they were computed with."""
    keys, penalty = _keys(chunk.table, similarity)
    flat = chunk.dot(queries[chunk.positions], keys)
    if penalty is not None:
        flat -= penalty[chunk.pair_rows()]
    return flat, keys


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
        senses: `[total_senses, hidden]`. offsets: `[vocab + 1]`, int64. Both may be on another device than `hidden`.
        similarity: `l2` scores `2 h.s - |s|^2`, which is `-|h - s|^2` up to a constant of h; `cosine` scores `2 cos(h, s)`, which is
            the same for unit vectors; `dot` scores `h.s`.
        temperature: `None` takes the best sense (hard); a number in units of the score takes the mean of the senses under
            `softmax(score / temperature)` (soft): for l2 the posterior mean of a Gaussian mixture of variance `temperature / 2`.

    Returns:
        The vectors and the index of each position's best sense among its token's own. A token without senses keeps its vector and
        has index -1. Not differentiable.
    """
    with torch.no_grad():
        queries = _queries(hidden, similarity)
        vectors, sense_ids = hidden.clone(), torch.full_like(token_ids, -1, dtype=torch.int64)
        for chunk in _chunks(token_ids, senses, offsets, scales):
            flat, _ = _scores(chunk, queries, similarity)
            best = chunk.argmax(flat)
            sense_ids[chunk.positions] = best
            if temperature is None:
                chosen = chunk.table[chunk.pair_rows()[chunk.ends - chunk.lengths + best]]
            else:
                chosen = chunk.combine(chunk.log_softmax(flat / temperature).exp(), chunk.table)
            vectors[chunk.positions] = chosen.to(vectors.dtype)
    return Assignment(vectors, sense_ids)


class _SenseCrossEntropy(torch.autograd.Function):
    """The loss with its gradient formed in the forward pass: senses are constants, and the scores are needed only once."""

    @staticmethod
    def forward(ctx, queries, token_ids, sense_ids, senses, offsets, similarity, temperature, scales):
        gradient = torch.zeros_like(queries)
        predicted = torch.full_like(sense_ids, -1)
        loss = queries.new_zeros(())
        for chunk in _chunks(token_ids, senses, offsets, scales):
            flat, keys = _scores(chunk, queries, similarity)
            predicted[chunk.positions] = chunk.argmax(flat)
            log_probabilities = chunk.log_softmax(flat / temperature)
            labels = chunk.ends - chunk.lengths + sense_ids[chunk.positions]
            loss -= log_probabilities[labels].sum()
            weights = log_probabilities.exp()
            weights[labels] -= 1
            gradient[chunk.positions] = chunk.combine(weights, keys) / temperature
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(predicted)
        return loss, predicted

    @staticmethod
    def backward(ctx, grad_loss, _):
        return grad_loss * ctx.saved_tensors[0], None, None, None, None, None, None, None


def sense_cross_entropy(
    hidden: Tensor,
    token_ids: Tensor,
    sense_ids: Tensor,
    senses: Tensor,
    offsets: Tensor,
    similarity: str = "l2",
    temperature: float = 1.0,
    scales: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum over positions of `-log softmax(scores / temperature)[sense_id]`, over each token's own senses.

    Args:
        hidden: `[n, hidden]`, the student's vectors; the gradient flows to them alone.
        token_ids: `[n]`. sense_ids: `[n]`, the teacher's choice among the token's own senses, or -1 for a position not to be counted.
        senses, offsets, similarity: as in :func:`assign_senses`. temperature: in units of the score.

    Returns:
        The summed loss (float32 scalar) and the student's own choices `[n]` (-1 where not counted).

    Raises:
        ValueError: a sense id is not one of its token's senses.
    """
    counted = (sense_ids >= 0).nonzero().squeeze(-1)
    tokens, labels = token_ids[counted], sense_ids[counted]
    ids = tokens.to(offsets.device)
    too_large = labels >= (offsets[ids + 1] - offsets[ids]).to(labels.device)
    if too_large.any():
        raise ValueError(
            f"sense id {int(labels[too_large][0])} of token {int(tokens[too_large][0])} is not in the dictionary: the sense ids were "
            "made with another dictionary; encode the texts again"
        )
    loss, choices = _SenseCrossEntropy.apply(
        _queries(hidden[counted], similarity), tokens, labels, senses, offsets, similarity, temperature, scales
    )
    return loss, torch.full_like(sense_ids, -1).index_put((counted,), choices)
