"""Cluster the samples of many tokens at once, and spread a budget of clusters over the tokens.

Each token is a clustering problem of its own. Problems are many, small and of uneven size, so problems of similar size
are padded and solved in one batch. There are two steps:

1. :func:`grow_tree` splits the samples of a token in two, each half again, and so on, down to single samples. A split
   is along the direction in which the samples vary most. The samples are kept in the order of the tree's leaves. A
   split then is a border between two neighbours. Its gain is the drop in the summed squared distance to the means.
2. Cutting the order at some borders gives clusters, and :func:`refine` improves them by k-means.

Splitting like this to start k-means is PCA-Part: Su and Dy, "In search of deterministic methods for initializing
k-means and Gaussian mixture clustering", Intelligent Data Analysis 11, 2007.

The gains decide how many clusters a token gets. For example, four samples in the order of their leaves with the gains

    inf | 8 | 1 | 3

have a cut before the first sample in any case. Two clusters cut at 8 as well: the first sample alone, the others
together. Three clusters cut at 8 and 3. A split never gains more than the splits above it, so the largest gains always
form a tree. A budget for all tokens is placed by cutting at the largest gains of all tokens. A fixed number of
clusters cuts at the largest gains of each token.

The paper chooses the number of clusters by Markov clustering instead; see the end of the file.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

# Numbers in a batch of padded problems. On a CPU they fit into the cache.
BATCH_ELEMENTS = 1 << 19
GPU_BATCH_ELEMENTS = 1 << 27
# Clusters of at most so many samples are split by their Gram matrix, which is then smaller than the samples.
GRAM_SAMPLES = 128
SPLIT_ITERATIONS = 4
REFINE_ITERATIONS = 4
# The rounding error of a sum of squares in float32, as a share of the largest one of the token.
NOISE = 4 * torch.finfo(torch.float32).eps

# The authors' settings of Markov clustering. The paper leaves some open; for these, the defaults of the package that
# the authors use, markov-clustering 0.0.6.
MARKOV_INFLATION = 1.65
MARKOV_SELF_LOOP = 1.0
MARKOV_PRUNING = 0.001
MARKOV_ITERATIONS = 100
# The authors keep all samples of a token with fewer samples than this.
PAPER_MIN_SENSES = 5

# A Gram matrix, that is the dot products of samples with each other, for each cluster of a batch: a function that
# multiplies factors `[clusters, m]` by the matrices, and their diagonals `[clusters, m]`.
Gram: TypeAlias = tuple[Callable[[Tensor], Tensor], Tensor]


def grow_tree(x: Tensor, offsets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Split the samples of every problem down to single or equal samples.

    Args:
        x: Samples, `[n, hidden]`, float32, problem by problem.
        offsets: Where the samples of each problem begin, `[problems + 1]`, int64.
        weights: How often each sample counts, `[n]`, float32, above 0.

    Returns:
        The indices of the samples in the order of the leaves, `[n]`, and the gain of a cut before each of them, `[n]`.
        The gain is the drop in summed squared distance. It is less than the gain of the split above, 0 between equal
        samples, and infinite before the first sample of a problem.
    """
    width = x.shape[1]
    order = torch.arange(len(x), device=x.device)
    gain = torch.zeros(len(x), dtype=torch.float32, device=x.device)
    starts, sizes = offsets[:-1], offsets.diff()
    gain[starts[sizes > 0]] = torch.inf
    # A gain below the rounding error is noise between equal samples.
    largest = torch.segment_reduce(x.norm(dim=-1).square(), "max", lengths=sizes, unsafe=True, initial=0)
    largest *= torch.segment_reduce(weights, "min", lengths=sizes, unsafe=True, initial=torch.inf)
    clusters = _Clusters(starts, sizes, starts, torch.full_like(largest, torch.inf), NOISE * largest)

    def centred(members: Tensor, inside: Tensor) -> Tensor:
        points = x.index_select(0, members.flatten()).view(*members.shape, width)
        return points.sub_(torch.bmm((inside / inside.sum(1, keepdim=True))[:, None], points))

    # Split large clusters from their samples; the Gram matrix is never formed.
    def from_points(members: Tensor, inside: Tensor, _: Tensor) -> Gram:
        points = centred(members, inside)

        def times(factors: Tensor) -> Tensor:
            return torch.bmm(torch.bmm(factors[:, None], points), points.mT).squeeze(1)

        return times, points.norm(dim=-1).square()

    clusters = _split_down(clusters, min(width, GRAM_SAMPLES), width, from_points, weights, order, gain)

    # Compute the Gram matrix of each cluster that is left. It contains the matrices of all clusters below.
    inner = torch.arange(len(x), device=x.device)
    strides, corners = torch.empty_like(clusters.sizes), torch.empty_like(clusters.sizes)
    total, batches = 0, []
    for batch, padded in _batches(clusters.sizes, width):
        strides[batch], corners[batch] = padded, total + padded**2 * torch.arange(len(batch), device=x.device)
        batches.append((batch, padded, total))
        total += len(batch) * padded**2
    matrices = torch.empty(total, dtype=torch.float32, device=x.device)
    for batch, padded, begin in batches:
        places, inside = _places(clusters.starts[batch], clusters.sizes[batch], padded)
        points = centred(order[places], weights[order[places]] * inside)
        torch.bmm(points, points.mT, out=matrices[begin : begin + len(batch) * padded**2].view(-1, padded, padded))
    roots = clusters.starts

    # Split these clusters down to single samples, from the parts of the matrices.
    def from_matrices(members: Tensor, inside: Tensor, matrix: Tensor) -> Gram:
        column = (members - roots[matrix, None]).int()
        row = (corners[matrix, None] + column * strides[matrix, None]).int()
        part = matrices.index_select(0, (row[:, :, None] + column[:, None]).flatten()).view(*members.shape, -1)
        return lambda factors: torch.bmm(factors[:, None], part).squeeze(1), part.diagonal(dim1=1, dim2=2)

    clusters = clusters._replace(matrix=torch.arange(len(roots), device=x.device))
    _split_down(clusters, 1, None, from_matrices, weights[order], inner, gain)
    return order[inner], gain


def place_cuts(gain: Tensor, offsets: Tensor, num_clusters: Tensor) -> Tensor:
    """Cut each problem at its largest gains above 0; of equal gains, at the first.

    Args:
        gain: The gains of :func:`grow_tree`, `[n]`.
        offsets: Where the samples of each problem begin, `[problems + 1]`.
        num_clusters: How many clusters each problem gets, `[problems]`, at least 1.

    Returns:
        Whether to cut before each sample, `[n]`, bool.
    """
    sizes = offsets.diff()
    problems = torch.arange(len(sizes), device=gain.device).repeat_interleave(sizes)
    by_gain = gain.argsort(descending=True, stable=True)
    by_problem = by_gain[problems[by_gain].argsort(stable=True)]
    rank = torch.arange(len(gain), device=gain.device) - offsets[problems]
    cuts = torch.zeros_like(gain, dtype=torch.bool)
    cuts[by_problem[rank < num_clusters[problems]]] = True
    return cuts & (gain > 0)


def refine(
    x: Tensor, problems: Tensor, labels: Tensor, offsets: Tensor, weights: Tensor, similarity: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Improve the clusters of every problem by k-means.

    Args:
        x: Samples, `[n, hidden]`, float32, problem by problem.
        problems: The problem of each sample, `[n]`, ascending.
        labels: The cluster of each sample, `[n]`, numbered over all problems.
        offsets: Where the clusters of each problem begin, `[problems + 1]`.
        weights: How often each sample counts, `[n]`, float32.
        similarity: `l2` or `cosine`, by which the nearest centre is chosen.

    Returns:
        The centres, `[clusters, hidden]`, which are the means of their samples (a cluster that loses all samples keeps
        its centre); the nearest centre of each sample, `[n]`; and its squared distance, `[n]`, between unit vectors
        for `cosine`.
    """
    centres = x.new_empty(int(offsets[-1]), x.shape[1])
    nearest, distance = torch.empty_like(labels), x.new_empty(len(x))
    sizes = torch.bincount(problems, minlength=len(offsets) - 1)
    starts, parts = sizes.cumsum(0) - sizes, offsets.diff()
    seen = sizes.nonzero().squeeze(1)
    # Batches of problems with similar numbers of samples, and among them with similar numbers of clusters.
    for batch, padded in _batches(sizes[seen], x.shape[1]):
        batch = seen[batch]
        for same, padded_parts in _batches(parts[batch], padded + x.shape[1]):
            own = batch[same]
            places, inside = _places(starts[own], sizes[own], padded)
            rows, real = _places(offsets[own], parts[own], padded_parts)
            points = x.index_select(0, places.flatten()).view(*places.shape, -1)
            counts = weights[places] * inside
            choice, means = labels[places] - offsets[own, None], points.new_zeros(())
            for _ in range(REFINE_ITERATIONS + 1):
                # Sums as matrix products instead of scattered additions are the same on every run, on a GPU too.
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


class _Clusters(NamedTuple):
    """Clusters of a tree that may be split further; all tensors are `[clusters]`.

    Attributes:
        starts: Where the samples of the cluster begin in the order of the leaves.
        sizes: Number of samples.
        matrix: Index of the Gram matrix that holds the samples.
        above: Gain of the split that made the cluster.
        noise: Gain up to which a split is noise.
    """

    starts: Tensor
    sizes: Tensor
    matrix: Tensor
    above: Tensor
    noise: Tensor

    def select(self, which: Tensor) -> "_Clusters":
        """Return some of the clusters."""
        return _Clusters(*(column[which] for column in self))


def _split_down(
    clusters: _Clusters,
    at_most: int,
    width: int | None,
    gram_of: Callable[[Tensor, Tensor, Tensor], Gram],
    weights: Tensor,
    order: Tensor,
    gain: Tensor,
) -> _Clusters:
    """Split clusters repeatedly, until they are small enough; changes `order` and `gain` in place.

    Args:
        clusters: The clusters.
        at_most: Number of samples at which a cluster is small enough.
        width: As for :func:`_batches`.
        gram_of: Returns the Gram matrices of a batch, from the entries of `order`, `[clusters, m]`, their weights (0
            for padding), `[clusters, m]`, and the field `matrix` of the clusters, `[clusters]`.
        weights: Weight of each sample, by its number in `order`.
        order: The samples in the order of the leaves, `[n]`; sorted further.
        gain: The gain of a cut before each sample, `[n]`; filled in.

    Returns:
        The clusters that are small enough and may be split.
    """
    done = []
    while True:
        # Set small clusters aside; forget clusters of one sample or of equal samples.
        clusters = clusters.select((clusters.sizes > 1) & (clusters.above > 0))
        large = clusters.sizes > at_most
        done.append(clusters.select(~large))
        clusters = clusters.select(large)
        if not len(clusters.sizes):
            return _Clusters(*(torch.cat(columns) for columns in zip(*done)))
        # Halve the others, and move the samples of the left half to the front.
        starts, sizes, matrix, above, noise = clusters
        in_left, drop = torch.empty_like(sizes), torch.empty_like(above)
        for batch, padded in _batches(sizes, width):
            places, inside = _places(starts[batch], sizes[batch], padded)
            members = order[places]
            inside_weights = weights[members] * inside
            times, norms = gram_of(members, inside_weights, matrix[batch])
            right, drop[batch] = _halve(times, norms, inside_weights)
            in_left[batch] = (inside & ~right).sum(1)
            half = right.to(torch.int8).masked_fill_(~inside, 2)
            order[places[inside]] = members.gather(1, half.argsort(dim=1, stable=True))[inside]
        # Store the gains; each is kept below the gain above.
        is_split = (in_left > 0) & (in_left < sizes) & (drop > noise)
        drop = torch.where(is_split, torch.minimum(drop, above.nextafter(torch.zeros_like(above))), 0)
        gain[(starts + in_left)[drop > 0]] = drop[drop > 0]
        left = _Clusters(starts, in_left, matrix, drop, noise)
        right_half = _Clusters(starts + in_left, sizes - in_left, matrix, drop, noise)
        clusters = _Clusters(*(torch.cat(columns) for columns in zip(left, right_half)))


def _halve(times: Callable[[Tensor], Tensor], norms: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Split clusters in two along the direction of largest variance, then improve the halves by k-means.

    A direction is a weighted sum of samples, and only its dot products with samples are needed. So the Gram matrices
    are enough.

    Args:
        times: Multiplies factors, `[clusters, m]`, by the Gram matrices.
        norms: The diagonals of the Gram matrices, `[clusters, m]`.
        weights: The weights of the samples, `[clusters, m]`; 0 for padding.

    Returns:
        Whether each sample is in the second half, `[clusters, m]`, and the drop in summed squared distance,
        `[clusters]`.
    """
    total = weights.sum(1, keepdim=True)
    mean = weights / total

    def project(factors: Tensor) -> Tensor:
        """Return the dot products of the samples, less their mean, with a sum of samples. The factors sum to 0."""
        products = times(factors)
        return products - torch.linalg.vecdot(products, mean)[:, None]

    # Find the direction by power iteration, from the sample farthest from the mean.
    farthest = norms.sub(times(mean), alpha=2).masked_fill_(weights == 0, -torch.inf).argmax(1, keepdim=True)
    projection = project(torch.scatter_add(-mean, 1, farthest, torch.ones_like(total)))
    for _ in range(SPLIT_ITERATIONS):
        projection = project(F.normalize(projection * weights, dim=1))
    # Run k-means with k = 2. Relative to the mean, the sums of the halves are opposite vectors, so one projection is
    # enough; the border is half way between the means of the halves.
    border = torch.zeros_like(total)
    for _ in range(SPLIT_ITERATIONS):
        right = projection > border
        half = right * weights
        in_right, in_left = half.sum(1, keepdim=True), (weights - half).sum(1, keepdim=True)
        projection = project(torch.addcmul(half, in_right, mean, value=-1))
        squared = torch.linalg.vecdot(projection, half)[:, None]
        inverse_right, inverse_left = (1 / torch.where(part > 0, part, 1) for part in (in_right, in_left))
        border = squared * (inverse_right - inverse_left) / 2
    return right, (squared * (inverse_right + inverse_left)).squeeze(1)


def _batches(sizes: Tensor, width: int | None = None) -> Iterator[tuple[Tensor, int]]:
    """Group problems of similar size into batches.

    Args:
        sizes: The size of each problem, `[problems]`.
        width: A problem takes `size * width` numbers; None: `size * size`.

    Yields:
        The indices of the problems, `[batch]`, and the size that they are padded to: one of four between two powers of
        2.
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
    """Return the indices `starts : starts + sizes`, padded by the first, and what is no padding, `[n, padded]`."""
    at = torch.arange(padded, device=starts.device)
    inside = at < sizes[:, None]
    return starts[:, None] + at * inside, inside


# The paper's number of senses, by Markov clustering.


def markov_clusters(similarities: Tensor) -> int:
    """Count the clusters of a graph by Markov clustering (van Dongen, "Graph clustering by flow simulation", 2000).

    Flow along the edges is expanded (paths of two edges) and inflated (strong edges grow, weak ones fade), until it
    does not change.

    Args:
        similarities: The weight of each edge, `[n, n]`, not negative. The diagonal is replaced by 1.

    Returns:
        The number of clusters.
    """
    flow = similarities.clone()
    flow.fill_diagonal_(MARKOV_SELF_LOOP)
    flow /= flow.sum(0)
    for _ in range(MARKOV_ITERATIONS):
        before = flow
        flow = (flow @ flow).pow_(MARKOV_INFLATION)
        flow /= flow.sum(0)
        # Remove weak flow, but never the largest of a column; of equal ones the first.
        is_largest = (torch.arange(len(flow), device=flow.device) == flow.argmax(0)[:, None]).T
        flow.masked_fill_((flow < MARKOV_PRUNING) & ~is_largest, 0)
        if torch.allclose(flow, before):
            break
    # Nodes with flow to themselves attract. A cluster is the nodes whose flow ends at an attractor; several attractors
    # may share one.
    attracted = flow[flow.diagonal() > 0] > 0
    return len(attracted.unique(dim=0))


def count_clusters(x: Tensor) -> int:
    """Return the number of Markov clusters of samples, `[n, hidden]`, by the paper's similarity `1 / (d + 0.01)`."""
    x = x.double()
    return markov_clusters(1 / (torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") + 0.01))


def paper_num_senses(n_samples: int, n_clusters: int) -> int:
    """Return the number of senses of a token, as in the authors' code.

    Args:
        n_samples: Number of samples of the token.
        n_clusters: Number of their Markov clusters.

    Returns:
        A tenth of the clusters, but at least 5, or four tenths above 900 clusters; never more than there are samples.
    """
    if n_samples < PAPER_MIN_SENSES:
        return n_samples
    wanted = max(PAPER_MIN_SENSES, n_clusters // 10) if n_clusters <= 900 else n_clusters * 4 // 10
    return min(wanted, n_samples)
