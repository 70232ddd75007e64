"""The sampling plan: which occurrences of each token the dictionary is fitted on.

Hardly anything here is held in memory that grows with the corpus (32 bytes for each of many equal texts); what grows with the sample is
one sort of its places, 8 bytes for each.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .tensor_files import TensorFile, create_tensor_file
from .windows import TokenizedCorpus

CHUNK = 1 << 20  # tokens, or texts, that are hashed at a time
BLOCK = 1 << 21  # candidates that are sorted at a time
# How many more candidates than needed are looked for, in standard deviations of their number.
MARGIN = 8.0
EVERY = np.iinfo(np.uint64).max


@dataclass
class SamplingPlan:
    """Which occurrences are sampled, and where each of them is stored; arrays of a memory-mapped file.

    Attributes:
        counts: `[vocab]`, occurrences of each token in the corpus (0 for tokens that are left out).
        offsets: `[vocab + 1]`: the samples of token t are the slots `offsets[t]:offsets[t + 1]`, `min(counts[t], cap)` of them.
        positions: `[samples]`, ascending: their places in the corpus' token ids. A negative one, -1 - s, is slot s of the earlier
            samples that the plan was made with.
        slots: `[samples]`, the slot of each position; those of a token are in the order of their priorities.
        priorities: `[samples]`, uint64, of each slot.
    """

    counts: np.ndarray
    offsets: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    priorities: np.ndarray


def open_plan(path: str | os.PathLike) -> SamplingPlan:
    """The plan that [`plan_samples`] has written."""
    return SamplingPlan(**{name: tensor.numpy() for name, tensor in TensorFile(path).items()})


def sample_sizes(counts: np.ndarray, max_samples_per_token: int) -> np.ndarray:
    """How many samples each token gets, `[vocab]`."""
    return np.minimum(counts, max_samples_per_token)


def count_tokens(corpus: TokenizedCorpus, vocab_size: int, exclude: tuple[int, ...] = ()) -> np.ndarray:
    """Occurrences of each token that have a vector of the teacher, `[vocab]`, int64; 0 for the excluded ones (padding).

    Raises:
        ValueError: the corpus holds a token id outside the vocabulary.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    for begin in range(0, len(corpus.input_ids), CHUNK):
        tokens = corpus.input_ids[begin : begin + CHUNK]
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            bad = tokens[(tokens < 0) | (tokens >= vocab_size)][0]
            raise ValueError(
                f"token id {bad} is outside the vocabulary of {vocab_size} tokens: the tokenizer does not belong to the model"
            )
        counts += np.bincount(tokens[corpus.has_vectors(begin, begin + len(tokens))], minlength=vocab_size)
    counts[list(exclude)] = 0
    return counts


def plan_samples(
    corpus: TokenizedCorpus,
    counts: np.ndarray,
    max_samples_per_token: int,
    directory: str | os.PathLike,
    *,
    seed: int = 0,
    earlier: TensorFile | None = None,
) -> SamplingPlan:
    """Draws up to `max_samples_per_token` occurrences of every token, uniformly and without replacement.

    An occurrence is drawn if its priority, a hash of the seed, its text's token ids, its position and its token, is among the lowest
    of its token: the sample depends neither on the order of the texts nor on batches, shards or restarts.

    Args:
        counts: of [`count_tokens`]. directory: gets `plan.safetensors`, whole or not at all, and files in between.
        earlier: `counts`, `offsets` and `priorities` of an earlier plan with the same number of samples per token and another seed:
            the new one draws from all occurrences of both.
    """
    folder = Path(directory)
    own = counts
    if earlier is not None:
        counts = counts + earlier["counts"].numpy()
    sizes = sample_sizes(counts, max_samples_per_token)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    keys = _text_keys(corpus, folder / "keys.bin", seed)
    # The n-th lowest of c uniform numbers is about n / c: what lies well above cannot be among the n lowest.
    enough = max_samples_per_token + MARGIN * (np.sqrt(max_samples_per_token) + 1)
    limits = np.where(counts > enough, enough / np.maximum(counts, 1) * 2.0**64, 0).astype(np.uint64)
    limits[counts <= enough] = EVERY
    limits[own == 0] = 0
    while True:
        tokens, priorities, positions = _candidates(corpus, keys, limits, folder, earlier)
        found = sum(np.bincount(tokens[i : i + CHUNK], minlength=len(counts)) for i in range(0, len(tokens), CHUNK))
        if (found >= sizes).all():
            break
        limits[found < sizes] = EVERY

    partial = folder / "plan.safetensors.partial"
    samples = (int(offsets[-1]),)
    file = create_tensor_file(
        partial,
        {
            "counts": (torch.int64, counts.shape),
            "offsets": (torch.int64, offsets.shape),
            "positions": (torch.int64, samples),
            "slots": (torch.int64, samples),
            "priorities": (torch.uint64, samples),
        },
    )
    plan = SamplingPlan(**{name: tensor.numpy() for name, tensor in file.items()})
    plan.counts[:], plan.offsets[:] = counts, offsets
    block = np.cumsum(found) // BLOCK
    by_slot = np.memmap(folder / "by_slot.bin", dtype=np.int64, mode="w+", shape=samples)
    for number in range(int(block[-1]) + 1):
        first, last = np.searchsorted(block, [number, number + 1])
        rows = [begin + _between(tokens[begin : begin + CHUNK], first, last) for begin in range(0, len(tokens), CHUNK)]
        rows = np.concatenate(rows)
        order = np.lexsort((priorities[rows], tokens[rows]))
        own_tokens = tokens[rows[order]]
        rank = np.arange(len(rows)) - np.searchsorted(own_tokens, own_tokens)
        rows = rows[order[rank < sizes[own_tokens]]]
        plan.priorities[offsets[first] : offsets[last]] = priorities[rows]
        by_slot[offsets[first] : offsets[last]] = positions[rows]
    order = np.argsort(by_slot)
    for begin in range(0, len(order), CHUNK):
        part = order[begin : begin + CHUNK]
        plan.slots[begin : begin + CHUNK], plan.positions[begin : begin + CHUNK] = part, by_slot[part]
    file.flush()
    partial.replace(folder / "plan.safetensors")
    for name in ("keys", "by_slot", *CANDIDATES):
        (folder / f"{name}.bin").unlink()
    return plan


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _between(values: np.ndarray, low: int, high: int) -> np.ndarray:
    return np.flatnonzero((values >= low) & (values < high))


def _text_keys(corpus: TokenizedCorpus, path: Path, seed: int) -> np.ndarray:
    """A pseudo-random number for each text from its content, in a file; equal texts are told apart by their number among their
    equals, which are found part by part of all digests."""
    digests = corpus.digests
    keys = np.memmap(path, dtype=np.uint64, mode="w+", shape=digests.shape)
    parts = 1 + len(digests) // BLOCK
    for part in range(parts):
        rows = [
            begin + np.flatnonzero(digests[begin : begin + CHUNK] % np.uint64(parts) == part)
            for begin in range(0, len(digests), CHUNK)
        ]
        rows = np.concatenate(rows)
        rows = rows[np.argsort(digests[rows], kind="stable")]
        ordered = digests[rows]
        number = np.arange(len(rows), dtype=np.uint64) - np.searchsorted(ordered, ordered).astype(np.uint64)
        keys[rows] = _mix(
            _mix(_mix(np.uint64(seed) + number * np.uint64(0x9E3779B97F4A7C15)) ^ ordered) + np.uint64(1)
        )
    return keys


def _priorities(corpus: TokenizedCorpus, keys: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Chunk by chunk of the corpus: its first place, its token ids, and the priority of each."""
    for begin in range(0, len(corpus.input_ids), CHUNK):
        tokens = corpus.input_ids[begin : begin + CHUNK]
        end = begin + len(tokens)
        first, last = np.searchsorted(corpus.offsets, [begin, end - 1], side="right") - 1
        starts = corpus.offsets[first : last + 1]
        lengths = np.diff(np.append(np.maximum(starts, begin), end))
        places = np.arange(begin, end) - np.repeat(starts, lengths)
        text_keys = np.repeat(keys[first : last + 1], lengths)
        yield (
            begin,
            tokens,
            _mix(
                _mix(text_keys + places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) ^ tokens.astype(np.uint64)
            ),
        )


CANDIDATES = {"tokens": np.int32, "candidate_priorities": np.uint64, "candidate_positions": np.int64}


def _candidates(
    corpus: TokenizedCorpus, keys: np.ndarray, limits: np.ndarray, folder: Path, earlier: TensorFile | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token, priority and position of all occurrences whose priority is not above the limit of their token, in files."""
    paths = [folder / f"{name}.bin" for name in CANDIDATES]
    files = [open(path, "wb") for path in paths]
    for begin, tokens, priorities in _priorities(corpus, keys):
        drawn = np.flatnonzero((priorities <= limits[tokens]) & (limits[tokens] > 0))
        drawn = drawn[corpus.has_vectors(begin, begin + len(tokens))[drawn]]
        for file, values in zip(files, (tokens[drawn], priorities[drawn], begin + drawn)):
            values.tofile(file)
    if earlier is not None:
        offsets, before = earlier["offsets"].numpy(), earlier["priorities"].numpy()
        for begin in range(0, len(before), CHUNK):
            slots = np.arange(begin, min(begin + CHUNK, len(before)))
            tokens = (np.searchsorted(offsets, slots, side="right") - 1).astype(np.int32)
            for file, values in zip(files, (tokens, before[slots], -1 - slots)):
                values.tofile(file)
    for file in files:
        file.close()
    return tuple(np.memmap(path, dtype=dtype, mode="r") for path, dtype in zip(paths, CANDIDATES.values()))
