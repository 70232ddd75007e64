"""The ragged layout of a sense dictionary, and how the positions of a batch are grouped into dense products.

Tokens have different numbers of senses: hundreds for "the", two for "giraffe". Padding all of them to the largest
number would multiply the work. Instead, the tokens of a batch that have the same number of senses and stand at the
same number of positions form a block, and each block is one batched product `[tokens, positions, hidden] x [tokens,
hidden, senses]`. Frequent tokens get a block of their own, rare ones share one. On a GPU the number of products counts
more than their size, so tokens with similar numbers share a block there and are padded.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .configuration_sense_embedding import SIMILARITIES


class RaggedSenses(NamedTuple):
    """A sense dictionary as plain tensors: the senses of all tokens, one token after the other.

    Attributes:
        table: `[total_senses, hidden]`. The senses of token `t` are the rows `offsets[t]:offsets[t + 1]`.
        offsets: `[vocab + 1]`, int64.
        similarity: How a vector is scored against a sense: `l2`, `cosine` or `dot`, see :func:`assign_senses`.
        scales: `[total_senses]` for an int8 table, whose senses are `table * scales[:, None]`; None for other tables.
    """

    table: Tensor
    offsets: Tensor
    similarity: str = "l2"
    scales: Tensor | None = None

    def spans(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first row and the number of rows of each token, both `[n]`, on the device of `offsets`.

        Args:
            token_ids: `[n]`; a negative one has no rows.
        """
        token_ids = token_ids.to(self.offsets.device)
        ids = token_ids.clamp_min(0)
        starts = self.offsets[ids]
        return starts, (self.offsets[ids + 1] - starts).masked_fill_(token_ids < 0, 0)

    def take(self, rows: Tensor | slice, device: torch.device) -> Tensor:
        """Return rows of the table as float32 senses, `[*rows, hidden]`.

        Args:
            rows: Indices of rows, of any shape, or a slice.
            device: Where the senses are copied.
        """

        def gather(tensor: Tensor) -> Tensor:
            # On a CPU an embedding copies rows several times faster than an index does.
            return (tensor[rows] if isinstance(rows, slice) else F.embedding(rows, tensor)).to(device).float()

        return gather(self.table) if self.scales is None else gather(self.table) * gather(self.scales[:, None])


class Blocking(NamedTuple):
    """How the tokens of a batch are grouped into blocks.

    Attributes:
        elements: The most numbers in the vectors of a block, in its senses and in its scores. Only a single vector, or
            the senses of a single token, may exceed it.
        base: 1: tokens share a block if they have the same number of senses and the same number of positions. 2, 4 or
            8: tokens share a block if both numbers lie between the same two powers of the base; they are padded to
            the largest.
    """

    elements: int
    base: int


# 4 MB stay in the cache of a CPU. A GPU takes as long for a product of thousands of numbers as for one of millions:
# the uneven senses of benchmarks/lookup.py take 179 products without padding, and 9 with padding, which do 2.7 times
# the work.
CPU, GPU = Blocking(1 << 20, 1), Blocking(1 << 24, 8)


class Block(NamedTuple):
    """Tokens whose vectors are scored in one batched product, with their senses.

    Attributes:
        positions: `[tokens, count]`, the positions at which each token stands. In a batch of `n` positions padding is
            `n`, see :func:`pad_positions`.
        senses: `[tokens, size, hidden]`, float32, the senses of each token.
        rows: `[tokens, size]`, the rows of these senses in the table, or a slice for a single token.
        is_padding: `[tokens, 1, size]`, True where a sense is padding; None if there is no padding.
    """

    positions: Tensor
    senses: Tensor
    rows: Tensor | slice
    is_padding: Tensor | None


class Scores(NamedTuple):
    """The scores of a block, and the vectors and senses that were multiplied for them (unit vectors for `cosine`).

    Attributes:
        scores: `[tokens, count, size]`.
        queries: `[tokens, count, hidden]`, the vectors.
        keys: `[tokens, size, hidden]`, the senses.
    """

    scores: Tensor
    queries: Tensor
    keys: Tensor


def score_block(vectors: Tensor, block: Block, similarity: str) -> Scores:
    """Score vectors against the senses of a block, in float32.

    Args:
        vectors: `[tokens, count, hidden]`, float32.
        block: The block; its padding gets -inf.
        similarity: `l2`, `cosine` or `dot`, see :func:`assign_senses`.

    Raises:
        ValueError: The similarity is unknown.
    """
    queries, keys = vectors, block.senses
    if similarity == "l2":
        squares = torch.linalg.vector_norm(keys, dim=-1).square()
        scores = torch.baddbmm(squares[:, None], queries, keys.mT, beta=-1, alpha=2)
    elif similarity == "cosine":
        queries, keys = F.normalize(queries, dim=-1), F.normalize(keys, dim=-1)
        scores = 2 * torch.bmm(queries, keys.mT)
    elif similarity == "dot":
        scores = torch.bmm(queries, keys.mT)
    else:
        raise ValueError(f"unknown similarity {similarity!r}: choose one of {', '.join(SIMILARITIES)}")
    return Scores(
        scores if block.is_padding is None else scores.masked_fill_(block.is_padding, -torch.inf), queries, keys
    )


def blocking_for(tensor: Tensor) -> Blocking:
    """Return the blocking for the device of a tensor."""
    return CPU if tensor.is_cpu else GPU


def pad_positions(rows: Tensor) -> Tensor:
    """Append a row of zeros to `[n, width]`, which the padding of blocks reads and writes.

    On a CPU positions are never padded, and the rows are returned as they are.
    """
    return rows if blocking_for(rows).base == 1 else F.pad(rows, (0, 0, 0, 1))


def iterate_blocks(token_ids: Tensor, senses: RaggedSenses) -> Iterator[Block]:
    """Group the positions of a batch into blocks. Each position whose token has senses is in one of them.

    All blocks are planned before the first is yielded, so that a GPU does not wait for the host between two of them.

    Args:
        token_ids: `[n]`; a negative one has no senses.
        senses: The dictionary, on the device of `token_ids`.

    Yields:
        The blocks.
    """
    elements, base = blocking_for(token_ids)
    width, total = senses.table.shape[1], len(token_ids)

    # Sort the distinct tokens into groups by their number of senses and of positions. `widest` and `longest` are a
    # group's maxima.
    tokens, inverse, counts = token_ids.unique(return_inverse=True, return_counts=True)
    starts, sizes = senses.spans(tokens)
    groups, order = (_size_classes(sizes, base) * (total + 1) + _size_classes(counts, base)).sort(stable=True)
    starts, sizes, counts = starts[order], sizes[order], counts[order]
    _, group, members = groups.unique_consecutive(return_inverse=True, return_counts=True)
    widest, longest = (torch.zeros_like(members).scatter_reduce_(0, group, each, "amax") for each in (sizes, counts))

    # Sort the positions by token. Each token gets as many slots as the longest of its group; what it does not need is
    # padding.
    owner, in_order = order.argsort()[inverse].sort(stable=True)
    spare = longest[group] - counts
    slots = in_order.new_full((base * total,), total)
    slots[torch.arange(total, device=slots.device) + (spare.cumsum(0) - spare)[owner]] = in_order

    # Read all numbers from the device at once, then cut each group into blocks of bounded size.
    known = torch.stack([starts, sizes, counts], dim=1).tolist()
    token = slot = 0
    for number, size, count in torch.stack([members, widest, longest], dim=1).tolist():
        positions = slots[slot : slot + number * count].view(number, count)
        step = max(1, elements // max(size * count, size * width, count * width))
        for first in range(0, number if size else 0, step):
            some = slice(token + first, token + min(first + step, number))
            at = positions[first : first + step]
            is_padding = None
            if len(at) == 1:
                # A single token needs no padding, and a view of its senses instead of a copy.
                start, own_size, own_count = known[some.start]
                rows: Tensor | slice = slice(start, start + own_size)
                at = at[:, :own_count]
            else:
                numbered = torch.arange(size, device=starts.device)
                rows = starts[some, None] + numbered
                if base > 1 and size > 1:
                    rows.clamp_max_(len(senses.table) - 1)
                    is_padding = (numbered >= sizes[some, None])[:, None]
            own = senses.take(rows, senses.table.device).view(len(at), -1, width)
            for part in at.split(max(1, elements // max(size, width)), dim=1):
                yield Block(part, own, rows, is_padding)
        token, slot = token + number, slot + number * count


def _size_classes(numbers: Tensor, base: int) -> Tensor:
    """Return the class of each number: the interval between two powers of the base, with 0 in a class of its own.

    With base 1 each number is a class.
    """
    if base == 1:
        return numbers
    powers = base ** torch.arange(20, device=numbers.device)  # 8^19 is still an int64
    return torch.bucketize(numbers, powers) + (numbers > 0)


def to_one_device(token_ids: Tensor, senses: RaggedSenses) -> tuple[Tensor, RaggedSenses]:
    """Return token ids and senses on one device; from another device the senses come by :func:`fetch_senses`."""
    if token_ids.device == senses.table.device == senses.offsets.device:
        return token_ids, senses
    return fetch_senses(token_ids, senses)


def fetch_senses(token_ids: Tensor, senses: RaggedSenses) -> tuple[Tensor, RaggedSenses]:
    """Copy the senses of a batch's tokens to the device of the token ids.

    All rows are sent at once, in the dtype of the table. If they were sent block by block, a GPU would have to wait
    for each block.

    Args:
        token_ids: `[n]`; a negative one has no senses.
        senses: The dictionary, on any device.

    Returns:
        The token ids in a new numbering, `[n]`, and a dictionary of the batch's distinct tokens alone, which are
        numbered from 0.
    """
    device = token_ids.device
    tokens, numbers = token_ids.unique(return_inverse=True)
    starts, sizes = senses.spans(tokens)
    offsets = F.pad(sizes.cumsum(0), (1, 0))
    rows = (starts - offsets[:-1]).repeat_interleave(sizes)
    rows = (rows + torch.arange(len(rows), device=rows.device)).to(senses.table.device)

    def fetch(tensor: Tensor) -> Tensor:
        is_pinned = tensor.is_cpu and device.type == "cuda"  # pageable memory is sent several times more slowly
        shape = len(rows), *tensor.shape[1:]
        found = torch.empty(shape, dtype=tensor.dtype, device=tensor.device, pin_memory=is_pinned)
        return torch.index_select(tensor, 0, rows, out=found).to(device, non_blocking=is_pinned)

    scales = None if senses.scales is None else fetch(senses.scales)
    return numbers, RaggedSenses(fetch(senses.table), offsets.to(device), senses.similarity, scales)
