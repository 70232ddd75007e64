"""Samples -> senses: k-means for many small problems of uneven size at once, and the placing of a budget over them.

Each token is a problem of its own. Its samples are split in two along their principal direction, and each part again (PCA-Part: Su
and Dy, "In search of deterministic methods for initializing k-means and Gaussian mixture clustering", Intelligent Data Analysis 11,
2007), which gives a whole distortion curve in one pass. The samples are kept in the order of the tree's leaves, so that a split is a
border between neighbours together with the squared distance it saves. Cutting at the largest borders of all tokens places a budget;
cutting at the k - 1 largest of each token gives k senses. The parts between the cuts are the start of ordinary k-means.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .ragged import assign_senses

# Clusters of one batch are padded to a common power of two and hold at most this many elements: that stays in the cache of a CPU.
BATCH_ELEMENTS = 1 << 21
# Tokens are worked on in blocks of about this many elements (256 MB in float32), whatever the size of the sample store.
BLOCK_ELEMENTS = 1 << 26
SPLIT_ITERATIONS = 4
REFINE_ITERATIONS = 4


@dataclass
class Senses:
    """What clustering yields.

    Attributes:
        senses: `[total_senses, hidden]`, float32. offsets: `[vocab + 1]`, int64.
        usage: `[total_senses]`, int64: how often each sense is the nearest one, scaled from the samples to true token counts.
        distortion: mean squared distance between a sample and its sense (between unit vectors for cosine), by true token counts.
    """

    senses: Tensor
    offsets: Tensor
    usage: Tensor
    distortion: float


def _split(x: Tensor, order: Tensor, starts: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Splits each cluster `order[start : start + size]` in two and sorts that part of `order` so that the first half comes first.

    Returns the size of the first half `[clusters]` and the drop in summed squared distance `[clusters]`.
    """
    at = torch.arange(int(sizes.max()), device=x.device)
    inside = at < sizes[:, None]
    places = (starts[:, None] + at).clamp_(max=len(order) - 1)
    members = order[places]
    points = x[members].masked_fill_(~inside[..., None], 0)
    points -= points.sum(1, keepdim=True) / sizes[:, None, None]
    points.masked_fill_(~inside[..., None], 0)
    # Power iteration from the farthest point to the principal direction, then k-means with k = 2. As the points are centred, both
    # means lie along the sum over one half, so each step of either is a projection and a weighted sum.
    direction = points[torch.arange(len(points), device=x.device), points.square().sum(-1).argmax(1)]
    for _ in range(SPLIT_ITERATIONS):
        direction = F.normalize(direction, dim=-1)
        direction = torch.bmm((points @ direction[..., None]).mT, points).squeeze(1)
    threshold = torch.zeros_like(direction[:, :1])
    for _ in range(SPLIT_ITERATIONS):
        projection = (points @ F.normalize(direction, dim=-1)[..., None]).squeeze(-1)
        right = (projection > threshold) & inside
        direction = torch.bmm(right[:, None].float(), points).squeeze(1)
        in_right = right.sum(1)
        in_left = sizes - in_right
        inverse_right, inverse_left = 1 / in_right.clamp_min(1), 1 / in_left.clamp_min(1)
        threshold = (direction.norm(dim=-1) * (inverse_right - inverse_left) / 2)[:, None]
    drop = direction.square().sum(-1) * (inverse_right + inverse_left)
    half = right.to(torch.int8).masked_fill_(~inside, 2)
    order[places[inside]] = members.gather(1, half.argsort(dim=1, stable=True))[inside]
    return in_left, torch.where((in_left > 0) & (in_right > 0), drop, 0)


def grow_tree(x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Splits every problem down to single samples or equal ones.

    Args:
        x: samples `[n, hidden]`, float32. offsets: `[problems + 1]`, int64; the samples of a problem are neighbours.

    Returns:
        order: `[n]`, the samples in the order of the leaves. gain: `[n]`, the drop in summed squared distance by cutting before the
        sample at this place. It is below the gain of every split above, so that the largest gains always form a tree: 0 between
        equal samples, infinite at the first sample of a problem.
    """
    order = torch.arange(len(x), device=x.device)
    gain = torch.zeros(len(x), device=x.device)
    starts, sizes = offsets[:-1], offsets.diff()
    gain[starts[sizes > 0]] = torch.inf
    above = torch.full(starts.shape, torch.inf, device=x.device)
    # Sums of squares below the rounding of float32 are noise between samples that are equal.
    largest = torch.segment_reduce(x.square().sum(-1), "max", lengths=sizes, unsafe=True, initial=0)
    noise = largest * torch.finfo(torch.float32).eps
    while True:
        keep = (sizes > 1) & (above > 0)
        starts, sizes, above, noise = starts[keep], sizes[keep], above[keep], noise[keep]
        if not len(starts):
            return order, gain
        in_left, drop = torch.empty_like(sizes), torch.empty_like(above)
        by_size = sizes.argsort(stable=True)
        first = 0
        while first < len(by_size):
            padded = 1 << (int(sizes[by_size[first]]) - 1).bit_length()
            batch = by_size[first : first + max(1, BATCH_ELEMENTS // (padded * x.shape[1]))]
            batch = batch[sizes[batch] <= padded]
            in_left[batch], drop[batch] = _split(x, order, starts[batch], sizes[batch])
            first += len(batch)
        drop = torch.where(drop > noise, torch.minimum(drop, above.nextafter(torch.zeros_like(above))), 0)
        gain[(starts + in_left)[drop > 0]] = drop[drop > 0]
        starts, sizes = torch.cat([starts, starts + in_left]), torch.cat([in_left, sizes - in_left])
        above, noise = torch.cat([drop, drop]), torch.cat([noise, noise])


def place_cuts(gain: Tensor, offsets: Tensor, num_senses: Tensor) -> Tensor:
    """Chooses the `num_senses` largest gains of each problem that are above 0; the first of equal ones.

    Args:
        gain: `[n]`, infinite at the first sample of each problem, which is always cut. offsets: `[problems + 1]`.
        num_senses: `[problems]`, at least 1.

    Returns:
        `[n]`, bool: where to cut.
    """
    sizes = offsets.diff()
    problems = torch.arange(len(sizes), device=gain.device).repeat_interleave(sizes)
    by_gain = gain.argsort(descending=True, stable=True)
    by_problem = by_gain[problems[by_gain].argsort(stable=True)]
    rank = torch.arange(len(gain), device=gain.device) - offsets[problems]
    cuts = torch.zeros_like(gain, dtype=torch.bool)
    cuts[by_problem[rank < num_senses[problems]]] = True
    return cuts & (gain > 0)


def refine(x: Tensor, problems: Tensor, labels: Tensor, offsets: Tensor, similarity: str) -> tuple[Tensor, Tensor, Tensor]:
    """k-means of every problem from given parts.

    Args:
        x: `[n, hidden]`, float32. problems: `[n]`. labels: `[n]`, the part of each sample, counted over all problems.
        offsets: `[problems + 1]`, the parts of each problem.

    Returns:
        centres: `[parts, hidden]`, means of the samples that are nearest to them (a part that lost all of its samples keeps its
        centre). labels: `[n]`, the nearest centre. distance: `[n]`, squared (between unit vectors for cosine).
    """
    centres = x.new_zeros(int(offsets[-1]), x.shape[1])
    for _ in range(REFINE_ITERATIONS + 1):
        sizes = torch.bincount(labels, minlength=len(centres))
        # Sorted segments, not scattered additions: the same sum on every run, on a GPU too.
        sums = torch.segment_reduce(x[labels.argsort(stable=True)], "sum", lengths=sizes, axis=0, unsafe=True)
        centres = torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp_min(1), centres)
        nearest = assign_senses(x, problems, centres, offsets, similarity)
        labels = offsets[problems] + nearest.sense_ids
    if similarity == "cosine":
        x, nearest = F.normalize(x, dim=-1), nearest._replace(vectors=F.normalize(nearest.vectors, dim=-1))
    return centres, labels, (x - nearest.vectors).square().sum(-1)
