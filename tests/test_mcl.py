import pytest
import torch

from sensedict_hf.building.clustering import count_clusters, markov_clusters, paper_num_senses


def blobs(seed, samples, centres, hidden, scale, distance):
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(centres, hidden, generator=generator, dtype=torch.float64) * distance
    noise = torch.randn(samples, hidden, generator=generator, dtype=torch.float64)
    return (centre.repeat_interleave(samples // centres, 0) + noise) * scale


# The numbers are those of markov-clustering 0.0.6.dev0, run_mcl(1 / (cdist(x, x) + 0.01), expansion=2, inflation=1.65) and get_clusters.
@pytest.mark.parametrize(
    "settings, expected",
    [
        ((0, 60, 3, 4, 0.1, 10), 3),
        ((1, 60, 4, 2, 1, 10), 4),
        ((3, 60, 4, 2, 10, 3), 7),
        ((5, 40, 1, 2, 5, 0), 2),
        ((4, 50, 1, 2, 10, 0), 1),
        ((4, 20, 2, 8, 10, 1), 20),
    ],
)
def test_counts_are_those_of_the_package(settings, expected):
    assert count_clusters(blobs(*settings)) == expected


def test_clusters_of_graphs():
    triangles = torch.block_diag(*[torch.ones(3, 3)] * 4)
    assert markov_clusters(triangles) == 4
    joined = triangles.clone()
    joined[2, 3] = joined[3, 2] = 0.01
    assert markov_clusters(joined) == 4
    assert markov_clusters(torch.zeros(5, 5)) == 5


def test_order_of_the_samples_does_not_matter_but_their_scale_does():
    x = blobs(3, 60, 4, 2, 1, 3)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert count_clusters(10 * x[order]) == count_clusters(10 * x) == 7
    assert count_clusters(0.01 * x) == 1 and count_clusters(1000 * x) == 60


def test_one_sample_and_equal_samples_are_one_cluster():
    assert count_clusters(torch.ones(1, 3)) == 1
    assert count_clusters(torch.ones(7, 3)) == 1


@pytest.mark.parametrize(
    "n_samples, n_clusters, expected",
    [(1, 1, 1), (4, 4, 4), (5, 1, 5), (60, 59, 5), (60, 60, 6), (1000, 900, 90), (1000, 901, 360), (1000, 1000, 400)],
)
def test_the_paper_s_rule(n_samples, n_clusters, expected):
    assert paper_num_senses(n_samples, n_clusters) == expected
