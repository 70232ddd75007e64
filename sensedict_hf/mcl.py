"""How many senses the paper gives a token: Markov clustering counts clusters, and a rule turns their number into that of senses.

For fidelity to the paper only. Every step is a dense matrix product, so a token with n samples costs O(n^3) time (seconds for 1,000
samples on a CPU) and O(n^2) memory, one token after the other. Nor is it scale-invariant: a sample's similarity to itself is 1, that to
another is 1 / distance, so that far samples stay alone and near ones fall together. On clear blobs it tends to say 1 or n.
"""

import torch
from torch import Tensor

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
        largest = torch.arange(len(flow), device=flow.device) == flow.argmax(0)[:, None]  # [column, row]: the first one of equals
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
