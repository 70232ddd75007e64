"""Senses of samples: where they go, how good they are, how they are counted; the number of Markov clusters."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from sensedict_hf.building import clustering, fitting
from sensedict_hf.building.clustering import count_clusters, markov_clusters, paper_num_senses, place_cuts
from sensedict_hf.building.fitting import cluster_samples
from sensedict_hf.models.sense_lookup import RaggedSenses, assign_senses


def csr(parts):
    """The samples of all tokens, `[n, hidden]`, and where those of each token begin, `[tokens + 1]`."""
    return np.concatenate(parts).astype(np.float32), np.concatenate([[0], np.cumsum([len(part) for part in parts])])


@pytest.fixture
def planted():
    """Samples of five tokens with 1 to 5 well separated senses each, 12 samples a sense; offsets; the true senses."""
    generator = np.random.default_rng(0)
    labels = [np.repeat(np.arange(number), 12) for number in range(1, 6)]
    return *csr(
        [10 * generator.normal(size=(5, 8))[label] + generator.normal(size=(len(label), 8)) * 0.1 for label in labels]
    ), labels


def test_the_example_of_cuts():
    """The example in the docstring of `clustering`; of equal gains, the first is cut."""
    gain = torch.tensor([torch.inf, 8, 1, 3, torch.inf, 2, 2])
    cuts = place_cuts(gain, torch.tensor([0, 4, 7]), torch.tensor([3, 2]))
    assert cuts.tolist() == [True, True, False, True, True, True, False]


def test_budget_goes_where_the_senses_are(planted):
    samples, offsets, labels = planted
    found = cluster_samples(samples, offsets, np.diff(offsets), budget=15)
    assert found.offsets.diff().tolist() == [1, 2, 3, 4, 5]
    tokens = torch.from_numpy(np.repeat(np.arange(5), np.diff(offsets)))
    senses = RaggedSenses(found.senses, found.offsets)
    sense_ids = assign_senses(torch.from_numpy(samples), tokens, senses).sense_ids
    for token, label in enumerate(labels):
        assert adjusted_rand_score(label, sense_ids[tokens == token]) == 1
    assert (found.usage == 12).all()
    assert found.distortion == pytest.approx(8 * 0.1**2, rel=0.2)


@pytest.mark.parametrize("similarity", ["l2", "cosine"])
def test_fixed_number_of_senses(planted, similarity):
    samples, offsets, _ = planted
    found = cluster_samples(samples, offsets, np.diff(offsets), senses_per_token=3, similarity=similarity)
    assert found.offsets.diff().tolist() == [3] * 5
    assert found.usage.sum() == len(samples)


def test_few_samples_are_kept_and_equal_ones_are_one_sense():
    rows = np.array([[1.0, 2], [3, 4], [5, 6], [1, 2], [1, 2]])
    samples, offsets = csr([rows, rows[:0], rows[:1]])
    found = cluster_samples(samples, offsets, np.diff(offsets), senses_per_token=20)
    assert found.offsets.tolist() == [0, 3, 3, 4]
    assert sorted(found.senses[:3].tolist()) == [[1, 2], [3, 4], [5, 6]]
    assert sorted(found.usage[:3].tolist()) == [1, 1, 3] and found.distortion == 0


def test_no_worse_than_scikit_learn():
    """On unstructured samples, the summed squared distance is at most 1% above k-means with k-means++ seeding."""
    generator = np.random.default_rng(0)
    parts = [generator.normal(size=(size, 16)) @ np.diag(np.linspace(0.1, 2, 16)) for size in (25, 40, 64, 100, 300)]
    samples, offsets = csr(parts)
    found = cluster_samples(samples, offsets, np.diff(offsets), senses_per_token=8)
    theirs = sum(KMeans(8, n_init=1, random_state=0).fit(part).inertia_ for part in parts)
    assert found.distortion * len(samples) <= 1.01 * theirs


def test_true_counts_weigh_the_budget_and_the_usage():
    """Of two tokens with the same samples, the one with a hundred times as many occurrences gets more senses."""
    part = np.random.default_rng(0).normal(size=(50, 4))
    samples, offsets = csr([part, part])
    found = cluster_samples(samples, offsets, np.array([50, 5000]), budget=20)
    assert found.offsets.diff()[1] > 3 * found.offsets.diff()[0]
    usage = found.usage.split(found.offsets.diff().tolist())
    assert usage[0].sum() == 50 and usage[1].sum() == 5000


def test_blocks_do_not_change_the_result(planted, monkeypatch):
    samples, offsets, _ = planted
    whole = cluster_samples(samples, offsets, np.diff(offsets), budget=15)
    monkeypatch.setattr(fitting, "BLOCK_ELEMENTS", 100)
    monkeypatch.setattr(clustering, "BATCH_ELEMENTS", 64)
    blocks = cluster_samples(samples, offsets, np.diff(offsets), budget=15)
    torch.testing.assert_close(blocks.senses, whole.senses)
    assert torch.equal(blocks.offsets, whole.offsets) and torch.equal(blocks.usage, whole.usage)


def test_a_token_with_huge_vectors_does_not_disturb_the_others(planted):
    samples, offsets, _ = planted
    huge = 1e4 * np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    joined = np.concatenate([samples, huge]), np.append(offsets, len(samples) + 20)
    found = cluster_samples(*joined, np.diff(joined[1]), senses_per_token=3)
    alone = cluster_samples(samples, offsets, np.diff(offsets), senses_per_token=3)
    torch.testing.assert_close(found.senses[:15], alone.senses)


def test_usage_counts_what_dot_picks():
    samples, offsets = csr([np.random.default_rng(0).normal(size=(60, 4)) * np.linspace(0.1, 3, 60)[:, None]])
    found = cluster_samples(samples, offsets, np.diff(offsets), senses_per_token=5, similarity="dot")
    picked = (torch.from_numpy(samples) @ found.senses.T).argmax(1)
    assert torch.equal(found.usage, torch.bincount(picked, minlength=5))


@pytest.mark.slow
def test_more_blocks_than_files_may_be_open(planted, tmp_path, monkeypatch):
    """Result files are opened one at a time, and sorted by number, not by name."""
    resource = pytest.importorskip("resource")
    samples, offsets, _ = planted
    monkeypatch.setattr(fitting, "BLOCK_ELEMENTS", 1)
    repeats = 45
    samples, sizes = np.tile(samples, (repeats, 1)), np.tile(np.diff(offsets), repeats)
    offsets = np.append(0, np.cumsum(sizes))
    expected = cluster_samples(samples[:180], offsets[:6], sizes[:5], senses_per_token=2)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
    try:
        found = cluster_samples(samples, offsets, sizes, senses_per_token=2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert torch.equal(found.senses, expected.senses.repeat(repeats, 1))
    for name in ("senses-100000", "senses-00002"):
        (tmp_path / f"{name}.safetensors").touch()
    assert [path.stem for path in fitting._results(tmp_path)] == ["senses-00002", "senses-100000"]


# Markov clustering.


def blobs(seed, samples, centres, hidden, scale, distance):
    """Samples `[samples, hidden]` around random centres; `distance` spreads the centres, `scale` everything."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(centres, hidden, generator=generator, dtype=torch.float64) * distance
    noise = torch.randn(samples, hidden, generator=generator, dtype=torch.float64)
    return (centre.repeat_interleave(samples // centres, 0) + noise) * scale


# Expected: markov-clustering 0.0.6.dev0, run_mcl(1 / (cdist(x, x) + 0.01), expansion=2, inflation=1.65), get_clusters.
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
def test_markov_clusters_are_as_many_as_the_package_finds(settings, expected):
    assert count_clusters(blobs(*settings)) == expected


def test_markov_clusters_of_graphs():
    triangles = torch.block_diag(*[torch.ones(3, 3)] * 4)
    assert markov_clusters(triangles) == 4
    joined = triangles.clone()
    joined[2, 3] = joined[3, 2] = 0.01
    assert markov_clusters(joined) == 4
    assert markov_clusters(torch.zeros(5, 5)) == 5


def test_markov_clusters_depend_on_the_scale_but_not_on_the_order_of_samples():
    x = blobs(3, 60, 4, 2, 1, 3)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert count_clusters(10 * x[order]) == count_clusters(10 * x) == 7
    assert count_clusters(0.01 * x) == 1 and count_clusters(1000 * x) == 60


def test_one_sample_and_equal_samples_are_one_markov_cluster():
    assert count_clusters(torch.ones(1, 3)) == 1
    assert count_clusters(torch.ones(7, 3)) == 1


@pytest.mark.parametrize(
    "n_samples, n_clusters, expected",
    [(1, 1, 1), (4, 4, 4), (5, 1, 5), (60, 59, 5), (60, 60, 6), (1000, 900, 90), (1000, 901, 360), (1000, 1000, 400)],
)
def test_number_of_senses_by_the_rule_of_the_paper(n_samples, n_clusters, expected):
    assert paper_num_senses(n_samples, n_clusters) == expected
