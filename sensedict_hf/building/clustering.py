"""Samples -> senses: k-means for many small problems of uneven size at once, and the placing of a budget over them.

Each token is a problem of its own. Its samples are split in two along their principal direction, and each part again (PCA-Part: Su
and Dy, "In search of deterministic methods for initializing k-means and Gaussian mixture clustering", Intelligent Data Analysis 11,
2007), which gives a whole distortion curve in one pass. The samples are kept in the order of the tree's leaves, so that a split is a
border between neighbours together with the squared distance it saves. Cutting at the largest borders of all tokens places a budget;
cutting at the k - 1 largest of each token gives k senses. The parts between the cuts are the start of ordinary k-means.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Problems of about one size are worked on together, padded, in batches of at most this many elements: on a CPU they stay in its cache.
BATCH_ELEMENTS = 1 << 19
GPU_BATCH_ELEMENTS = 1 << 27
# Clusters of up to so many samples are split by the matrix of their dot products, which is read in the place of the samples.
MATRIX_SAMPLES = 128
SPLIT_ITERATIONS = 4
REFINE_ITERATIONS = 4
# Sums of squares are not known better than this, in units of the token's largest.
NOISE = 4 * torch.finfo(torch.float32).eps


class _Clusters(NamedTuple):
    """Clusters that may be split, `[clusters]` each: their places in the order of the leaves, the number of the matrix that they are in,
    the gain of the split above, and the gain below which there is none."""

    starts: Tensor
    sizes: Tensor
    matrix: Tensor
    above: Tensor
    noise: Tensor

    def __getitem__(self, index) -> "_Clusters":
        return _Clusters(*(column[index] for column in tuple(self)))


def _batches(sizes: Tensor, width: int | None = None) -> Iterator[tuple[Tensor, int]]:
    """Batches of problems of about one size: their indices, and the size that they are padded to, one of four to the octave.

    Args:
        width: what a problem takes is its size times this; without it, its size squared.
    """
    limit = BATCH_ELEMENTS if sizes.device.type == "cpu" else GPU_BATCH_ELEMENTS
    by_size = sizes.argsort(stable=True)
    ordered = sizes[by_size].tolist()
    first = 0
    while first < len(ordered):
        step = max(1, (1 << (ordered[first] - 1).bit_length()) // 8)
        padded = -(-ordered[first] // step) * step
        last = min(bisect_right(ordered, padded, first), first + max(1, limit // (padded * (width or padded))))
        yield by_size[first:last], padded
        first = last


def _places(starts: Tensor, sizes: Tensor, padded: int) -> tuple[Tensor, Tensor]:
    """The places of clusters, `[clusters, padded]`, and which of them are not padding; padding repeats the first place."""
    at = torch.arange(padded, device=starts.device)
    inside = at < sizes[:, None]
    return starts[:, None] + at * inside, inside


def _halve(times: Callable[[Tensor], Tensor], norms: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Splits clusters in two along their principal directions, then by k-means with k = 2.

    A direction is a weighted sum of the samples and is seen by nothing but its dot products with them, so that the dot products of the
    samples are all there is to know.

    Args:
        times: multiplies factors `[clusters, m]` by the matrices of dot products. norms: `[clusters, m]`, the diagonals of these.
        weights: `[clusters, m]`, of the samples; 0 for padding.

    Returns:
        right: `[clusters, m]`, true in the second half. drop: `[clusters]`, in summed squared distance.
    """
    total = weights.sum(1, keepdim=True)
    mean = weights / total

    def project(factors: Tensor) -> Tensor:
        """The dot products of the samples, less their mean, with a sum of them; the factors sum to zero."""
        products = times(factors)
        return products - torch.linalg.vecdot(products, mean)[:, None]

    # Power iteration from the sample farthest from the mean.
    farthest = norms.sub(times(mean), alpha=2).masked_fill_(weights == 0, -torch.inf).argmax(1, keepdim=True)
    projection = project(torch.scatter_add(-mean, 1, farthest, torch.ones_like(total)))
    for _ in range(SPLIT_ITERATIONS):
        projection = project(F.normalize(projection * weights, dim=1))
    border = torch.zeros_like(total)
    for _ in range(SPLIT_ITERATIONS):
        right = projection > border
        half = right * weights
        in_right, in_left = half.sum(1, keepdim=True), (weights - half).sum(1, keepdim=True)
        projection = project(torch.addcmul(half, in_right, mean, value=-1))
        # Less the mean, the sums of the halves are opposite vectors, and the border is half way between their means.
        squared = torch.linalg.vecdot(projection, half)[:, None]
        inverse_right, inverse_left = (1 / torch.where(part > 0, part, 1) for part in (in_right, in_left))
        border = squared * (inverse_right - inverse_left) / 2
    return right, (squared * (inverse_right + inverse_left)).squeeze(1)


def _split_down(
    clusters: _Clusters,
    at_most: int,
    width: int | None,
    look_up: Callable,
    weights: Tensor,
    order: Tensor,
    gain: Tensor,
) -> _Clusters:
    """Splits clusters again and again, until they are of `at_most` so many samples; sorts their parts of `order` and fills in `gain`.

    Args:
        width: see :func:`_batches`. look_up: from `order` at the places of clusters `[clusters, m]`, the weights of these, and the
            numbers of the clusters' matrices, the first two arguments of :func:`_halve`. weights: of what `order` holds.
    """
    done = []
    while True:
        clusters = clusters[(clusters.sizes > 1) & (clusters.above > 0)]
        large = clusters.sizes > at_most
        done.append(clusters[~large])
        clusters = clusters[large]
        if not len(clusters.sizes):
            return _Clusters(*(torch.cat(columns) for columns in zip(*done)))
        starts, sizes, matrix, above, noise = clusters
        in_left, drop = torch.empty_like(sizes), torch.empty_like(above)
        for batch, padded in _batches(sizes, width):
            places, inside = _places(starts[batch], sizes[batch], padded)
            members = order[places]
            inside_weights = weights[members] * inside
            right, drop[batch] = _halve(*look_up(members, inside_weights, matrix[batch]), inside_weights)
            in_left[batch] = (inside & ~right).sum(1)
            half = right.to(torch.int8).masked_fill_(~inside, 2)
            order[places[inside]] = members.gather(1, half.argsort(dim=1, stable=True))[inside]
        is_split = (in_left > 0) & (in_left < sizes) & (drop > noise)
        drop = torch.where(is_split, torch.minimum(drop, above.nextafter(torch.zeros_like(above))), 0)
        gain[(starts + in_left)[drop > 0]] = drop[drop > 0]
        left = _Clusters(starts, in_left, matrix, drop, noise)
        right = _Clusters(starts + in_left, sizes - in_left, matrix, drop, noise)
        clusters = _Clusters(*(torch.cat(columns) for columns in zip(left, right)))


def grow_tree(x: Tensor, offsets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Splits every problem down to single samples or equal ones.

    Args:
        x: samples `[n, hidden]`, float32. offsets: `[problems + 1]`, int64; the samples of a problem are neighbours.
        weights: `[n]`, float32, above 0: how often each sample counts.

    Returns:
        order: `[n]`, the samples in the order of the leaves. gain: `[n]`, the drop in summed squared distance by cutting before the
        sample at this place. It is below the gain of every split above, so that the largest gains always form a tree: 0 between
        equal samples, infinite at the first sample of a problem.
    """
    width = x.shape[1]
    order = torch.arange(len(x), device=x.device)
    gain = torch.zeros(len(x), device=x.device)
    starts, sizes = offsets[:-1], offsets.diff()
    gain[starts[sizes > 0]] = torch.inf
    # Sums of squares below the rounding of float32 are noise between samples that are equal.
    largest = torch.segment_reduce(x.norm(dim=-1).square(), "max", lengths=sizes, unsafe=True, initial=0)
    largest *= torch.segment_reduce(weights, "min", lengths=sizes, unsafe=True, initial=torch.inf)
    clusters = _Clusters(starts, sizes, starts, torch.full_like(largest, torch.inf), NOISE * largest)

    def centred(members: Tensor, inside: Tensor) -> Tensor:
        points = x.index_select(0, members.flatten()).view(*members.shape, width)
        return points.sub_(torch.bmm((inside / inside.sum(1, keepdim=True))[:, None], points))

    def from_points(members: Tensor, inside: Tensor, _: Tensor) -> tuple[Callable, Tensor]:
        points = centred(members, inside)
        return lambda factors: torch.bmm(torch.bmm(factors[:, None], points), points.mT).squeeze(1), points.norm(
            dim=-1
        ).square()

    clusters = _split_down(clusters, min(width, MATRIX_SAMPLES), width, from_points, weights, order, gain)

    # With no more samples than dimensions, the matrix of their dot products is smaller than they are, and those of all the clusters
    # below are parts of it.
    inner = torch.arange(len(x), device=x.device)
    strides, corners = torch.empty_like(clusters.sizes), torch.empty_like(clusters.sizes)
    total, batches = 0, []
    for batch, padded in _batches(clusters.sizes, width):
        strides[batch], corners[batch] = padded, total + padded**2 * torch.arange(len(batch), device=x.device)
        batches.append((batch, padded, total))
        total += len(batch) * padded**2
    matrices = torch.empty(total, device=x.device)
    for batch, padded, begin in batches:
        places, inside = _places(clusters.starts[batch], clusters.sizes[batch], padded)
        points = centred(order[places], weights[order[places]] * inside)
        torch.bmm(points, points.mT, out=matrices[begin : begin + len(batch) * padded**2].view(-1, padded, padded))
    roots = clusters.starts

    def from_matrices(members: Tensor, inside: Tensor, matrix: Tensor) -> tuple[Callable, Tensor]:
        column = (members - roots[matrix, None]).int()
        row = (corners[matrix, None] + column * strides[matrix, None]).int()
        part = matrices.index_select(0, (row[:, :, None] + column[:, None]).flatten()).view(*members.shape, -1)
        return lambda factors: torch.bmm(factors[:, None], part).squeeze(1), part.diagonal(dim1=1, dim2=2)

    clusters = clusters._replace(matrix=torch.arange(len(roots), device=x.device))
    _split_down(clusters, 1, None, from_matrices, weights[order], inner, gain)
    return order[inner], gain


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


def refine(
    x: Tensor, problems: Tensor, labels: Tensor, offsets: Tensor, weights: Tensor, similarity: str
) -> tuple[Tensor, Tensor, Tensor]:
    """k-means of every problem from given parts.

    Args:
        x: `[n, hidden]`, float32. problems: `[n]`, ascending. labels: `[n]`, the part of each sample, counted over all problems.
        offsets: `[problems + 1]`, the parts of each problem. weights: `[n]`, float32: how often each sample counts.

    Returns:
        centres: `[parts, hidden]`, means of the samples that are nearest to them (a part that lost all of its samples keeps its
        centre). labels: `[n]`, the nearest centre. distance: `[n]`, squared (between unit vectors for cosine).
    """
    centres, nearest, distance = (
        x.new_empty(int(offsets[-1]), x.shape[1]),
        torch.empty_like(labels),
        x.new_empty(len(x)),
    )
    sizes = torch.bincount(problems, minlength=len(offsets) - 1)
    starts, parts = sizes.cumsum(0) - sizes, offsets.diff()
    seen = sizes.nonzero().squeeze(1)
    for batch, padded in _batches(sizes[seen], x.shape[1]):
        batch = seen[batch]
        for same, padded_parts in _batches(parts[batch], padded + x.shape[1]):
            own = batch[same]
            places, inside = _places(starts[own], sizes[own], padded)
            rows, real = _places(offsets[own], parts[own], padded_parts)
            points = x.index_select(0, places.flatten()).view(*places.shape, -1)
            # Sums as products with 0 and weights, not scattered additions: the same on every run, on a GPU too.
            counts = weights[places] * inside
            choice, means = labels[places] - offsets[own, None], 0
            for _ in range(REFINE_ITERATIONS + 1):
                chosen = points.new_zeros(len(own), padded_parts, padded).scatter_(1, choice[:, None], counts[:, None])
                weight = chosen.sum(2, keepdim=True)
                means = torch.where(weight > 0, torch.bmm(chosen, points) / torch.where(weight > 0, weight, 1), means)
                keys = F.normalize(means, dim=-1) if similarity == "cosine" else means
                scores = torch.bmm(points, keys.mT)
                if similarity != "cosine":
                    scores -= keys.norm(dim=-1).square()[:, None] / 2
                before, choice = choice, scores.masked_fill_(~real[:, None], -torch.inf).argmax(2)
                if torch.equal(choice * inside, before * inside):
                    break
            if similarity == "cosine":
                points = F.normalize(points, dim=-1)
            rows_of = choice + padded_parts * torch.arange(len(own), device=x.device)[:, None]
            points -= keys.flatten(0, 1).index_select(0, rows_of.flatten()).view_as(points)
            centres[rows[real]] = means[real]
            nearest[places[inside]] = (offsets[own, None] + choice)[inside]
            distance[places[inside]] = points.norm(dim=-1)[inside].square()
    return centres, nearest, distance


# The authors' settings; what the paper leaves open is as in the package that they use, markov-clustering 0.0.6.
INFLATION = 1.65
SELF_LOOP = 1.0
PRUNING_THRESHOLD = 0.001
MAX_ITERATIONS = 100
MIN_SENSES = 5


def markov_clusters(similarities: Tensor) -> int:
    """The number of clusters of a graph by Markov clustering (van Dongen, "Graph clustering by flow simulation", 2000).

    Args:
        similarities: `[n, n]`, not negative; what stands on the diagonal is replaced by 1.
    """
    flow = similarities.clone()
    flow.fill_diagonal_(SELF_LOOP)
    flow /= flow.sum(0)
    for _ in range(MAX_ITERATIONS):
        before = flow
        flow = (flow @ flow).pow_(INFLATION)
        flow /= flow.sum(0)
        largest = (
            torch.arange(len(flow), device=flow.device) == flow.argmax(0)[:, None]
        )  # [column, row]: the first one of equals
        flow.masked_fill_((flow < PRUNING_THRESHOLD) & ~largest.T, 0)
        if torch.allclose(flow, before):
            break
    # The samples with flow to themselves attract; a cluster is what flows to one of them. Several may attract the same cluster.
    attracted = flow[flow.diagonal() > 0] > 0
    return len(attracted.unique(dim=0))


def count_clusters(x: Tensor) -> int:
    """The number of Markov clusters of samples `[n, hidden]`, with similarity `1 / (distance + 0.01)`."""
    x = x.double()
    return markov_clusters(1 / (torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") + 0.01))


def paper_num_senses(n_samples: int, n_clusters: int) -> int:
    """The number of senses of a token in the authors' code, from its Markov clusters; fewer than 5 samples are all kept."""
    if n_samples < MIN_SENSES:
        return n_samples
    wanted = max(MIN_SENSES, n_clusters // 10) if n_clusters <= 900 else n_clusters * 4 // 10
    return min(wanted, n_samples)
