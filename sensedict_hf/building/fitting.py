"""Fit the senses of every token to its samples, reading and writing files block by block.

Clustering itself is in `clustering.py`; this file decides what is clustered together, and where results go. Tokens are
worked on in blocks of consecutive tokens that fit into memory. Each block's result is one file, which appears only
when it is complete. So several processes can share the blocks, and an interrupted run continues with the blocks that
have no file.

A budget needs two passes, because it is shared by all tokens. The first pass splits the samples of each token into a
tree and stores what every split gains (see `clustering.py`). Then the smallest gain that the budget still buys is
looked up over all blocks. The second pass makes the splits whose gain is at least that, and refines the resulting
senses. For example, three tokens with gains (9, 4), (7, 1) and (3) and a budget of 6 senses: each token gets one
sense, the other three go to the gains 9, 7 and 4, so the smallest gain is 4. Without a budget, one pass does both.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers.utils.logging import tqdm

from ..models.sense_lookup import RaggedSenses, assign_senses, store_senses
from .clustering import count_clusters, grow_tree, paper_num_senses, place_cuts, refine
from .tensor_files import Tensors, create_tensor_file, write_tensor_file

# A block has about this many numbers, whatever the size of the sample store: 64 MB in float32 for each CPU thread, 1
# GB on a GPU.
BLOCK_ELEMENTS = 1 << 24
GPU_BLOCK_ELEMENTS = 1 << 28
# Each sample counts as this many numbers more, for the memory that its tree takes.
TREE_ELEMENTS = 128
# A distortion below this share of the samples' mean square is a rounding error. It counts as 0: as a unit of
# temperature it would be meaningless.
SMALLEST_DISTORTION = 1e-6


@dataclass
class FittedSenses:
    """The senses of all tokens, in memory.

    Attributes:
        senses: The senses, `[total_senses, hidden]`, float32.
        offsets: The senses of token t are the rows `offsets[t]:offsets[t + 1]`; `[vocab + 1]`, int64.
        usage: How often each sense is the nearest one, `[total_senses]`, int64, scaled up from the samples to all
            occurrences.
        distortion: Mean squared distance between a vector and its sense, estimated for all occurrences; between unit
            vectors for `cosine`.
    """

    senses: Tensor
    offsets: Tensor
    usage: Tensor
    distortion: float


def fit_senses(
    store: Tensors,
    directory: str | Path,
    *,
    senses_per_token: int | None = None,
    budget: int | None = None,
    similarity: str = "l2",
    device: torch.device | str = "cpu",
    alone: bool = False,
) -> None:
    """Fit the senses of all tokens and write them to `senses-*.safetensors`.

    The number of senses is `budget` in all, or `senses_per_token` for each token; without either, the paper's rule
    decides. A token with fewer distinct samples than senses gets its distinct samples as senses.

    Args:
        store: The samples: `samples`, `[n, hidden]`; `offsets`, `[vocab + 1]`, where the samples of each token begin;
            `counts`, `[vocab]`, its occurrences in the corpus; optionally `weights`, `[n]`, how many occurrences each
            sample stands for.
        directory: Folder of the files, which :func:`write_senses` reads.
        senses_per_token: Number of senses of each token.
        budget: Number of senses in all, at least one for each token with samples.
        similarity: `l2`, `cosine` or `dot`. `dot` clusters by squared distance, as the paper does.
        device: Where to compute.
        alone: Whether this process does all the work. If not, all processes must call this and share the directory.
    """
    blocks = _Blocks(store, Path(directory), device, alone)
    metric = "cosine" if similarity == "cosine" else "l2"

    def tree(x: Tensor, starts: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return grow_tree(F.normalize(x, dim=-1) if metric == "cosine" else x, starts, weights.float())

    def split(block: int) -> dict[str, Tensor]:
        order, gain = tree(*blocks.load(block))
        return {"order": order.int(), "gain": gain}

    # First pass, for a budget: split everything, then find the smallest gain that the budget buys.
    lowest, spare = 0.0, [0] * len(blocks.tokens)
    if budget is not None:
        blocks.work("tree", "Splitting", split)
        lowest, spare = _lowest_gain([blocks.path("tree", block) for block in range(len(blocks.tokens))], budget)

    def fit(block: int) -> dict[str, Tensor]:
        x, starts, weights = blocks.load(block)
        # Choose where the ordered samples are cut into senses.
        if budget is not None:
            file = load_file(blocks.path("tree", block))
            order, gain = file["order"].to(x.device).long(), file["gain"].to(x.device)
            equal = gain == lowest
            cuts = (gain > lowest) | (equal & (equal.cumsum(0) <= spare[block]))
        else:
            order, gain = tree(x, starts, weights)
            cuts = place_cuts(gain, starts, _wanted_senses(x, starts, senses_per_token))
        # Number the parts between the cuts, and improve them by k-means.
        problems = torch.arange(len(starts) - 1, device=x.device).repeat_interleave(starts.diff())
        labels = torch.empty_like(problems)
        labels[order] = cuts.cumsum(0) - 1
        sizes = torch.segment_reduce(cuts.float(), "sum", lengths=starts.diff(), unsafe=True).long()
        parts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        senses, labels, distance = refine(x, problems, labels, parts, weights.float(), metric)
        # Count with the similarity that the dictionary will use.
        if similarity == "dot":
            table = RaggedSenses(senses, parts, "dot")
            labels = parts[problems] + assign_senses(x, problems, table).sense_ids
        power = torch.ones_like(distance) if metric == "cosine" else x.square().sum(-1)
        return {
            "senses": senses,
            "sizes": sizes,
            "usage": torch.bincount(labels.cpu(), weights.cpu(), minlength=len(senses)).round().long(),
            "sums": torch.stack([(distance * weights).sum(), (power * weights).sum(), weights.sum()]),
        }

    # Second pass, or the only one: cut the trees and refine the parts.
    blocks.work("senses", "Refining", fit)


def write_senses(directory: str | Path, store: Tensors, path: str | Path, dtype: torch.dtype) -> tuple[int, float]:
    """Write the files of :func:`fit_senses` as the weights of a dictionary, with memory for one block.

    Args:
        directory: Where the files are.
        store: The samples that the senses were fitted to.
        path: The safetensors file to write.
        dtype: The dtype of the senses; int8 comes with a scale for each sense.

    Returns:
        The number of senses and the distortion.
    """
    offsets, distortion = _layout(Path(directory), store)
    total, width = int(offsets[-1]), store["samples"].shape[1]
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "senses": (dtype, (total, width)),
        "offsets": (torch.int64, offsets.shape),
        "usage": (torch.int64, (total,)),
    }
    if dtype == torch.int8:
        tensors["scales"] = (torch.float32, (total,))
    out = create_tensor_file(path, tensors)
    out["offsets"].copy_(offsets)
    first = 0
    for block in _results(Path(directory)):
        file = load_file(block)
        rows = slice(first, first + len(file["usage"]))
        table, scales = store_senses(file["senses"], dtype)
        out["senses"][rows], out["usage"][rows] = table, file["usage"]
        if scales is not None:
            out["scales"][rows] = scales
        first = rows.stop
    out.flush()
    return total, distortion


def cluster_samples(
    samples: np.ndarray | Tensor,
    offsets: np.ndarray | Tensor,
    counts: np.ndarray | Tensor,
    weights: Tensor | None = None,
    *,
    senses_per_token: int | None = None,
    budget: int | None = None,
    similarity: str = "l2",
    device: torch.device | str = "cpu",
) -> FittedSenses:
    """Fit senses in memory, with :func:`fit_senses` and temporary files.

    Args:
        samples: The samples of all tokens, `[n, hidden]`.
        offsets: Where the samples of each token begin, `[vocab + 1]`.
        counts: How often each token occurs in the corpus, `[vocab]`.
        weights: How many occurrences each sample stands for, `[n]`. Default: the same for all samples of a token.
        senses_per_token: Number of senses of each token.
        budget: Number of senses in all.
        similarity: `l2`, `cosine` or `dot`.
        device: Where to compute.

    Returns:
        The senses.
    """
    given = {"samples": samples, "offsets": offsets, "counts": counts, "weights": weights}
    store = {name: torch.as_tensor(value) for name, value in given.items() if value is not None}
    with TemporaryDirectory(prefix="sensedict-") as directory:
        fit_senses(
            store,
            directory,
            senses_per_token=senses_per_token,
            budget=budget,
            similarity=similarity,
            device=device,
            alone=True,
        )
        layout, distortion = _layout(Path(directory), store)
        files = [load_file(path) for path in _results(Path(directory))]
        senses, usage = (torch.cat([file[name] for file in files]) for name in ("senses", "usage"))
        return FittedSenses(senses, layout, usage, distortion)


class _Blocks:
    """The blocks of a sample store, and the files that hold their results."""

    def __init__(self, store: Tensors, directory: Path, device: torch.device | str, alone: bool) -> None:
        self.store, self.directory, self.device = store, directory, torch.device(device)
        self.offsets, self.counts = store["offsets"], store["counts"]
        # Tokens without samples are in no block.
        sizes = self.offsets.diff()
        seen = sizes.nonzero().squeeze(1)
        elements = BLOCK_ELEMENTS if self.device.type == "cpu" else GPU_BLOCK_ELEMENTS
        number = sizes[seen].cumsum(0) * (store["samples"].shape[1] + TREE_ELEMENTS) // elements
        self.tokens = seen.split(number.unique_consecutive(return_counts=True)[1].tolist())
        # Process p of n takes the blocks p, p + n, p + 2n and so on.
        self.state = None if alone else PartialState()
        first, step = (0, 1) if self.state is None else (self.state.process_index, self.state.num_processes)
        self.mine = range(first, len(self.tokens), step)

    def path(self, kind: str, block: int) -> Path:
        """Return the file of one kind of result of a block."""
        return self.directory / f"{kind}-{block:05}.safetensors"

    def work(self, kind: str, description: str, function: Callable[[int], dict[str, Tensor]]) -> None:
        """Compute and write the files that are missing, then wait for the other processes.

        On a CPU, each thread works on a block of its own, since single operations are too small to share.

        Args:
            kind: The kind of result, part of the file names.
            description: The title of the progress bar.
            function: Computes the tensors of a block from its number.
        """
        missing = [block for block in self.mine if not self.path(kind, block).exists()]

        def run(block: int) -> None:
            write_tensor_file(self.path(kind, block), {name: tensor.cpu() for name, tensor in function(block).items()})

        threads = torch.get_num_threads()
        with ThreadPoolExecutor(
            threads if self.device.type == "cpu" else 1, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            try:
                progress = tqdm(
                    total=len(missing), desc=description, unit=" blocks", leave=False, disable=self.mine.start > 0
                )
                for _ in pool.map(run, missing):
                    progress.update()
                progress.close()
            finally:
                torch.set_num_threads(threads)  # the initializer also changed it for future threads
        if self.state is not None:
            self.state.wait_for_everyone()

    def load(self, block: int) -> tuple[Tensor, Tensor, Tensor]:
        """Read the samples of a block onto the device.

        Returns:
            The samples, `[n, hidden]`, float32; where the samples of each token begin, `[tokens + 1]`; and how many
            occurrences in the corpus each sample stands for, `[n]`, float64.
        """
        tokens = self.tokens[block]
        first, last = self.offsets[tokens[0]], self.offsets[tokens[-1] + 1]
        x = self.store["samples"][first:last].to(self.device, torch.float32)
        sizes = self.offsets.diff()[tokens]
        starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        if "weights" in self.store:
            weights = self.store["weights"][first:last].double()
        else:
            weights = (self.counts[tokens] / sizes.double()).repeat_interleave(sizes)
        return x, starts.to(self.device), weights.to(self.device)


def _wanted_senses(x: Tensor, starts: Tensor, senses_per_token: int | None) -> Tensor:
    """Return how many senses each token of a block gets, `[tokens]`: a fixed number, or what the paper's rule says."""
    if senses_per_token is not None:
        return torch.full_like(starts[1:], senses_per_token)
    parts = x.split(starts.diff().tolist())
    return torch.tensor([paper_num_senses(len(part), count_clusters(part)) for part in parts], device=x.device)


def _lowest_gain(paths: list[Path], budget: int) -> tuple[float, list[int]]:
    """Find the smallest gain that a budget still buys.

    Args:
        paths: The tree files of all blocks.
        budget: Number of gains to buy, the largest first. The infinite gain of each token, its first sense, counts.

    Returns:
        The smallest gain, and how many gains equal to it the budget buys in each block.
    """
    blocks = [load_file(path)["gain"].numpy() for path in paths]
    gains = np.concatenate(blocks)
    place = max(0, len(gains) - budget)
    gains.partition(place)
    lowest = float(gains[place])
    if lowest == 0 or budget > len(gains):
        return 0.0, [0] * len(paths)  # the budget buys everything; splits that gain nothing are never made
    # Of equal gains, the first blocks get theirs.
    left, spare = budget - int((gains > lowest).sum()), []
    for block in blocks:
        spare.append(min(left, int((block == lowest).sum())))
        left -= spare[-1]
    return lowest, spare


def _results(directory: Path) -> list[Path]:
    """Return the files of all blocks, in the order of their tokens."""
    return sorted(directory.glob("senses-*.safetensors"), key=lambda path: int(path.stem.split("-")[1]))


def _layout(directory: Path, store: Tensors) -> tuple[Tensor, float]:
    """Return where the senses of each token begin, `[vocab + 1]`, and the distortion."""
    found, sums = ([load_file(path)[name].clone() for path in _results(directory)] for name in ("sizes", "sums"))
    sizes = store["offsets"].diff()
    per_token = torch.zeros_like(sizes)
    per_token[sizes > 0] = torch.cat(found)
    offsets = torch.cat([sizes.new_zeros(1), per_token.cumsum(0)])
    distortion, power, total = torch.stack(sums).sum(0).tolist()
    return offsets, distortion / total if distortion > SMALLEST_DISTORTION * power else 0.0
