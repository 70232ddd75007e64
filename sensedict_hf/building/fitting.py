"""Samples on disk -> senses on disk, in blocks of tokens that any number of processes take turns at.

Every block is a file, written as a whole: what is there need not be done again. For a budget each block's trees come first; the
smallest gain that the budget still buys is then found over all of them.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torch.nn import functional as F
from transformers.utils.logging import tqdm

from ..models.sense_lookup import RaggedSenses, assign_senses, store_senses
from .clustering import count_clusters, grow_tree, paper_num_senses, place_cuts, refine
from .tensor_files import TensorFile, create_tensor_file, write_tensor_file

# Tokens are worked on in blocks of about this many elements (64 MB in float32 for each thread of a CPU, 1 GB elsewhere), whatever the
# size of the sample store; a sample is counted with what its tree takes.
BLOCK_ELEMENTS = 1 << 24
GPU_BLOCK_ELEMENTS = 1 << 28
TREE_ELEMENTS = 128


@dataclass
class Senses:
    """What fitting yields.

    Attributes:
        senses: `[total_senses, hidden]`, float32. offsets: `[vocab + 1]`, int64.
        usage: `[total_senses]`, int64: how often each sense is the nearest one, scaled from the samples to true token counts.
        distortion: mean squared distance between a sample and its sense (between unit vectors for cosine), by true token counts.
    """

    senses: Tensor
    offsets: Tensor
    usage: Tensor
    distortion: float


class _Blocks:
    """The blocks of a store of samples, and the files that belong to them."""

    def __init__(self, store: Mapping[str, Tensor], directory: Path, device: torch.device | str, alone: bool):
        self.store, self.directory, self.device = store, directory, torch.device(device)
        self.offsets, self.counts = store["offsets"], store["counts"]
        sizes = self.offsets.diff()
        seen = sizes.nonzero().squeeze(1)
        elements = BLOCK_ELEMENTS if self.device.type == "cpu" else GPU_BLOCK_ELEMENTS
        number = sizes[seen].cumsum(0) * (store["samples"].shape[1] + TREE_ELEMENTS) // elements
        self.tokens = seen.split(number.unique_consecutive(return_counts=True)[1].tolist())
        self.state = None if alone else PartialState()
        first, step = (0, 1) if alone else (self.state.process_index, self.state.num_processes)
        self.mine = range(first, len(self.tokens), step)

    def path(self, kind: str, block: int) -> Path:
        return self.directory / f"{kind}-{block:05}.safetensors"

    def work(self, kind: str, description: str, function: Callable[[int], dict[str, Tensor]]) -> None:
        """Computes the tensors of this process' blocks whose file of that kind is missing, and writes them; then waits for the others.

        On a CPU each thread has a block to itself: what is computed at once is too small to share.
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
                torch.set_num_threads(threads)  # for threads to come
        if self.state is not None:
            self.state.wait_for_everyone()

    def load(self, block: int) -> tuple[Tensor, Tensor, Tensor]:
        """The samples `[n, hidden]` of a block's tokens, float32, their offsets `[tokens + 1]`, and what each sample stands for
        `[n]`, float64: occurrences in the corpus."""
        tokens = self.tokens[block]
        first, last = self.offsets[tokens[0]], self.offsets[tokens[-1] + 1]
        x = self.store["samples"][first:last].to(self.device, torch.float32)
        sizes = self.offsets.diff()[tokens]
        local = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        if "weights" in self.store:
            weights = self.store["weights"][first:last].double()
        else:
            weights = (self.counts[tokens] / sizes.double()).repeat_interleave(sizes)
        return x, local.to(self.device), weights.to(self.device)


def fit_senses(
    store: Mapping[str, Tensor],
    directory: str | Path,
    *,
    num_senses: int | None = None,
    budget: int | None = None,
    similarity: str = "l2",
    device: torch.device | str = "cpu",
    alone: bool = False,
) -> None:
    """Fits the senses of every token: `budget` in all, `num_senses` for each, or without either as many as the paper's rule says.

    A token with no more distinct samples than senses keeps its samples. `dot` clusters by squared distance, as the paper does.

    Args:
        store: `samples [n, hidden]`, `offsets [vocab + 1]`: the samples of each token, `counts [vocab]`: its occurrences in the corpus,
            and optionally `weights [n]`, how many of them each sample stands for.
        directory: gets `senses-*.safetensors`, which [`read_senses`] reads.
        budget: at least the number of tokens that have samples.
        alone: this process does it all, also where it is one of several; else they share a directory and the work.
    """
    blocks = _Blocks(store, Path(directory), device, alone)
    metric = "cosine" if similarity == "cosine" else "l2"

    def tree(x: Tensor, local: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return grow_tree(F.normalize(x, dim=-1) if metric == "cosine" else x, local, weights.float())

    def split(block: int) -> dict[str, Tensor]:
        order, gain = tree(*blocks.load(block))
        return {"order": order.int(), "gain": gain}

    if budget is not None:
        blocks.work("tree", "Splitting", split)
        lowest, spare = _lowest_gain([blocks.path("tree", block) for block in range(len(blocks.tokens))], budget)

    def fit(block: int) -> dict[str, Tensor]:
        x, local, weights = blocks.load(block)
        own = torch.arange(len(local) - 1, device=x.device).repeat_interleave(local.diff())
        if budget is not None:
            file = TensorFile(blocks.path("tree", block))
            order, gain = file["order"].to(x.device).long(), file["gain"].to(x.device)
            equal = gain == lowest
            cuts = (gain > lowest) | (equal & (equal.cumsum(0) <= spare[block]))
        else:
            order, gain = tree(x, local, weights)
            if num_senses is not None:
                wanted = torch.full_like(local[1:], num_senses)
            else:
                parts = x.split(local.diff().tolist())
                wanted = torch.tensor(
                    [paper_num_senses(len(part), count_clusters(part)) for part in parts], device=x.device
                )
            cuts = place_cuts(gain, local, wanted)
        labels = torch.empty_like(own)
        labels[order] = cuts.cumsum(0) - 1
        sizes = torch.segment_reduce(cuts.float(), "sum", lengths=local.diff(), unsafe=True).long()
        parts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        senses, labels, distance = refine(x, own, labels, parts, weights.float(), metric)
        if similarity == "dot":
            labels = parts[own] + assign_senses(x, own, RaggedSenses(senses, parts, "dot")).sense_ids
        power = torch.ones_like(distance) if metric == "cosine" else x.square().sum(-1)
        return {
            "senses": senses,
            "sizes": sizes,
            "usage": torch.bincount(labels.cpu(), weights.cpu(), minlength=len(senses)).round().long(),
            "sums": torch.stack([(distance * weights).sum(), (power * weights).sum(), weights.sum()]),
        }

    blocks.work("senses", "Refining", fit)


def _lowest_gain(paths: list[Path], budget: int) -> tuple[float, list[int]]:
    """The gain of the last sense that the budget buys, and of how many equal ones it buys in each block.

    Found through the histogram of the upper and then of the lower half of the bits: those of non-negative floats are in their order.
    """

    def bits(path: Path) -> Tensor:
        return TensorFile(path)["gain"].view(torch.int32).long()

    upper = sum(torch.bincount(bits(path) >> 16, minlength=1 << 15) for path in paths)
    above = upper.flip(0).cumsum(0).flip(0)  # gains in this bin or a higher one
    chosen = int((above >= budget).sum()) - 1
    if chosen < 0:
        return 0.0, [0] * len(paths)
    left = budget - int(above[chosen] - upper[chosen])
    lower = sum(
        torch.bincount(values[values >> 16 == chosen] & 0xFFFF, minlength=1 << 16) for values in map(bits, paths)
    )
    above = lower.flip(0).cumsum(0).flip(0)
    last = int((above >= left).sum()) - 1
    left -= int(above[last] - lower[last])
    value = torch.tensor((chosen << 16) + last, dtype=torch.int32)
    lowest = float(value.view(torch.float32))
    if lowest == 0:
        return 0.0, [0] * len(paths)
    spare = []
    for path in paths:
        spare.append(min(left, int((bits(path) == value).sum())))
        left -= spare[-1]
    return lowest, spare


def read_senses(directory: str | Path, store: Mapping[str, Tensor]) -> Senses:
    """What [`fit_senses`] has left in `directory`; `senses` in memory."""
    offsets, distortion = _layout(Path(directory), store)
    senses, usage = (
        [TensorFile(path)[name].clone() for path in _results(Path(directory))] for name in ("senses", "usage")
    )
    return Senses(torch.cat(senses), offsets, torch.cat(usage), distortion)


def write_senses(
    directory: str | Path, store: Mapping[str, Tensor], path: str | Path, dtype: torch.dtype
) -> tuple[int, float]:
    """Writes what [`fit_senses`] has left in `directory` as the tensors of a dictionary, block by block.

    Args:
        dtype: of the table; int8 has a scale for every sense.

    Returns:
        The number of senses and the distortion.
    """
    offsets, distortion = _layout(Path(directory), store)
    total, width = int(offsets[-1]), store["samples"].shape[1]
    tensors = {
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
        file = TensorFile(block)
        rows = slice(first, first + len(file["usage"]))
        table, scales = store_senses(file["senses"], dtype)
        out["senses"][rows], out["usage"][rows] = table, file["usage"]
        if scales is not None:
            out["scales"][rows] = scales
        first = rows.stop
    out.flush()
    return total, distortion


def _results(directory: Path) -> list[Path]:
    """The files of all blocks, in the order of their tokens."""
    return sorted(directory.glob("senses-*.safetensors"), key=lambda path: int(path.stem.split("-")[1]))


def _layout(directory: Path, store: Mapping[str, Tensor]) -> tuple[Tensor, float]:
    """The offsets `[vocab + 1]` of all senses, and the distortion."""
    found, sums = ([TensorFile(path)[name].clone() for path in _results(directory)] for name in ("sizes", "sums"))
    sizes = store["offsets"].diff()
    per_token = torch.zeros_like(sizes)
    per_token[sizes > 0] = torch.cat(found)
    distortion, power, total = torch.stack(sums).sum(0).tolist()
    # What is left by rounding is none: as the unit of a temperature it would be meaningless.
    return torch.cat(
        [sizes.new_zeros(1), per_token.cumsum(0)]
    ), distortion / total if distortion > 1e-6 * power else 0.0


def cluster_samples(samples: np.ndarray | Tensor, offsets: np.ndarray, counts: np.ndarray, **settings) -> Senses:
    """[`fit_senses`] from and to memory.

    Args:
        samples: `[n, hidden]`. offsets: `[vocab + 1]`. counts: `[vocab]`. settings: of [`fit_senses`].
    """
    store = {
        name: torch.as_tensor(values)
        for name, values in (("samples", samples), ("offsets", offsets), ("counts", counts))
    }
    with TemporaryDirectory(prefix="sensedict-") as directory:
        fit_senses(store, directory, alone=True, **settings)
        return read_senses(directory, store)
