"""Choose the occurrences of each token that the dictionary is fitted to: the sampling plan.

A frequent token occurs far more often than clustering can use, so at most `max_samples_per_token` of its occurrences
are sampled. Every occurrence has a priority: a pseudo-random number, a hash of the seed, the content of its text, its
place in the text and its token. Equal texts are told apart by counting them. The occurrences with the lowest
priorities are sampled. For example, if "bark" occurs five times with the priorities 9, 2, 7, 4 and 8, a plan with two
samples takes the second and the fourth occurrence.

This has three advantages over drawing random numbers one by one. The sample is uniform and without replacement. It
does not depend on the order of the texts, on batches or on restarts. And a corpus can be extended: the lowest
priorities of old and new texts together are a uniform sample of all of them, so only the new texts must be read.

The samples of a token are stored next to each other, in slots; its first slot has the lowest priority. The corpus may
be larger than memory, so all work is done in chunks. A first pass over the corpus writes candidates to files: the
occurrences whose priority is low enough to have a chance. Then the candidates of some tokens at a time are sorted.
Only two things are held in memory whole: the positions of all samples, 8 bytes each, and texts that are equal, 32
bytes each.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from .tensor_files import Tensors, create_array, create_tensor_file
from .windows import TokenizedCorpus

CHUNK = 1 << 20  # tokens, or texts, that are hashed at once
BLOCK = 1 << 21  # candidates that are sorted at once
# The limit of a token is so high that this many more candidates than needed are expected below it, in standard
# deviations of their number.
MARGIN = 8.0
EVERY = np.iinfo(np.uint64).max  # the limit that includes every priority
GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # the step of splitmix64
CANDIDATES = {"tokens": np.int32, "candidate_priorities": np.uint64, "candidate_positions": np.int64}


@dataclass
class SamplingPlan:
    """Which occurrences are sampled, and where their vectors are stored; arrays of a memory-mapped file.

    Attributes:
        counts: Number of occurrences of each token, `[vocab]`, int64; 0 for tokens that are left out.
        offsets: The samples of token t are the slots `offsets[t]:offsets[t + 1]`; `[vocab + 1]`, int64.
        positions: Positions of the samples in the corpus, `[samples]`, int64, ascending. A negative number -1 - s
            means slot s of the earlier samples that the plan was made with.
        slots: The slot of each position, `[samples]`, int64.
        priorities: The priority of each slot, `[samples]`, uint64, ascending for each token.
    """

    counts: np.ndarray
    offsets: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    priorities: np.ndarray


def count_tokens(corpus: TokenizedCorpus, vocab_size: int, exclude: tuple[int, ...] = ()) -> np.ndarray:
    """Count the occurrences of each token that get a vector of the teacher.

    Args:
        corpus: The texts.
        vocab_size: Number of tokens of the vocabulary.
        exclude: Token ids that count as 0, such as padding.

    Returns:
        `[vocab]`, int64.

    Raises:
        ValueError: The corpus holds a token id outside the vocabulary.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    for begin in range(0, len(corpus.input_ids), CHUNK):
        tokens = corpus.input_ids[begin : begin + CHUNK]
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            bad = tokens[(tokens < 0) | (tokens >= vocab_size)][0]
            raise ValueError(
                f"token id {bad} is outside the vocabulary of {vocab_size} tokens: use the tokenizer that belongs "
                "to the model"
            )
        counts += np.bincount(tokens[corpus.has_vectors(begin, begin + len(tokens))], minlength=vocab_size)
    counts[list(exclude)] = 0
    return counts


def sample_sizes(counts: np.ndarray, max_samples_per_token: int) -> np.ndarray:
    """Return how many samples each token gets, `[vocab]`.

    Args:
        counts: Occurrences of each token, `[vocab]`.
        max_samples_per_token: The most samples that a token gets.
    """
    return np.minimum(counts, max_samples_per_token)


def plan_samples(
    corpus: TokenizedCorpus,
    counts: np.ndarray,
    max_samples_per_token: int,
    directory: str | os.PathLike[str],
    *,
    seed: int = 0,
    earlier: Tensors | None = None,
) -> SamplingPlan:
    """Sample up to `max_samples_per_token` occurrences of every token, uniformly and without replacement.

    Args:
        corpus: The texts.
        counts: Their counts, from :func:`count_tokens`.
        max_samples_per_token: The most samples that a token gets.
        directory: Where `plan.safetensors` goes, together with temporary files.
        seed: The seed of the priorities.
        earlier: A file with `counts`, `offsets` and `priorities` of an earlier plan, which was made with another seed
            and the same `max_samples_per_token`. The new plan samples from the occurrences of both.

    Returns:
        The plan, memory-mapped.
    """
    folder = Path(directory)
    own = counts
    if earlier is not None:
        counts = counts + earlier["counts"].numpy()
    sizes = sample_sizes(counts, max_samples_per_token)
    limits = _limits(own, counts, max_samples_per_token)
    keys = _text_keys(corpus, folder / "keys.bin", seed)
    # Collect candidates. In the unlikely case that a token has too few, take all of its occurrences.
    while True:
        tokens, priorities, positions = _candidates(corpus, keys, limits, folder, earlier)
        found = np.zeros(len(counts), dtype=np.int64)
        for begin in range(0, len(tokens), CHUNK):
            found += np.bincount(tokens[begin : begin + CHUNK], minlength=len(counts))
        if (found >= sizes).all():
            break
        limits[found < sizes] = EVERY

    # Create the file of the plan.
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    samples = (int(offsets[-1]),)
    partial = folder / "plan.safetensors.partial"
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
    # Sort the candidates of each block of tokens by token and priority, and keep the first ones of each token.
    block = np.cumsum(found) // BLOCK
    by_slot = create_array(folder / "by_slot.bin", np.int64, len(plan.slots))
    for number in range(int(block[-1]) + 1):
        first, last = np.searchsorted(block, [number, number + 1])
        rows = np.concatenate(
            [begin + _between(tokens[begin : begin + CHUNK], first, last) for begin in range(0, len(tokens), CHUNK)]
        )
        order = np.lexsort((priorities[rows], tokens[rows]))
        ordered = tokens[rows[order]]
        rank = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
        rows = rows[order[rank < sizes[ordered]]]
        plan.priorities[offsets[first] : offsets[last]] = priorities[rows]
        by_slot[offsets[first] : offsets[last]] = positions[rows]
    # Sort the samples by position.
    order = np.argsort(by_slot)
    for begin in range(0, len(order), CHUNK):
        part = order[begin : begin + CHUNK]
        plan.slots[begin : begin + CHUNK], plan.positions[begin : begin + CHUNK] = part, by_slot[part]
    file.flush()
    partial.replace(folder / "plan.safetensors")
    for name in ("keys", "by_slot", *CANDIDATES):
        (folder / f"{name}.bin").unlink()
    return plan


def open_plan(path: str | os.PathLike[str]) -> SamplingPlan:
    """Open the plan that :func:`plan_samples` has written.

    Args:
        path: The file `plan.safetensors`.

    Returns:
        The plan, memory-mapped.
    """
    return SamplingPlan(**{name: tensor.numpy() for name, tensor in load_file(path).items()})


def _limits(counts: np.ndarray, together: np.ndarray, max_samples_per_token: int) -> np.ndarray:
    """Choose the priority up to which the occurrences of each token are candidates.

    Priorities are uniform. Of `c` uniform numbers from 0 to 1, about `n` lie below `n / c`, so almost surely the `n`
    lowest lie below a limit that is a few standard deviations higher.

    Args:
        counts: Occurrences of each token in the corpus, `[vocab]`.
        together: The same, with the occurrences that earlier samples stand for.
        max_samples_per_token: The most samples that a token gets.

    Returns:
        `[vocab]`, uint64; 0 for tokens that do not occur.
    """
    enough = max_samples_per_token + MARGIN * (np.sqrt(max_samples_per_token) + 1)
    limits = np.where(together > enough, enough / np.maximum(together, 1) * 2.0**64, 0).astype(np.uint64)
    limits[together <= enough] = EVERY
    limits[counts == 0] = 0
    return limits


def _text_keys(corpus: TokenizedCorpus, path: Path, seed: int) -> np.ndarray:
    """Hash each text to a pseudo-random number; equal texts are told apart by how many come before.

    Equal texts are found by sorting the digests, a part at a time.

    Args:
        corpus: The texts.
        path: The file that holds the result.
        seed: The seed.

    Returns:
        `[texts]`, uint64, memory-mapped.
    """
    digests = corpus.digests
    keys = create_array(path, np.uint64, len(digests))
    parts = 1 + len(digests) // BLOCK
    for part in range(parts):
        rows = np.concatenate(
            [
                begin + np.flatnonzero(digests[begin : begin + CHUNK] % np.uint64(parts) == part)
                for begin in range(0, len(digests), CHUNK)
            ]
        )
        rows = rows[np.argsort(digests[rows], kind="stable")]
        ordered = digests[rows]
        number = np.arange(len(rows), dtype=np.uint64) - np.searchsorted(ordered, ordered).astype(np.uint64)
        keys[rows] = _mix(_mix(_mix(np.uint64(seed) + number * GOLDEN_GAMMA) ^ ordered) + np.uint64(1))
    return keys


def _priorities(corpus: TokenizedCorpus, keys: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield the corpus in chunks: the first position, the token ids and their priorities, both `[chunk]`."""
    for begin in range(0, len(corpus.input_ids), CHUNK):
        tokens = corpus.input_ids[begin : begin + CHUNK]
        end = begin + len(tokens)
        # The texts that overlap with the chunk, and how many of their tokens are in it.
        first, last = np.searchsorted(corpus.offsets, [begin, end - 1], side="right") - 1
        starts = corpus.offsets[first : last + 1]
        lengths = np.diff(np.append(np.maximum(starts, begin), end))
        places = np.arange(begin, end) - np.repeat(starts, lengths)
        text_keys = np.repeat(keys[first : last + 1], lengths)
        place_keys = _mix(text_keys + places.astype(np.uint64) * GOLDEN_GAMMA)
        yield begin, tokens, _mix(place_keys ^ tokens.astype(np.uint64))


def _candidates(
    corpus: TokenizedCorpus, keys: np.ndarray, limits: np.ndarray, folder: Path, earlier: Tensors | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write all occurrences up to the limit of their token to files, and all earlier samples.

    Args:
        corpus: The texts.
        keys: The hash of each text.
        limits: The highest priority of a candidate of each token, `[vocab]`.
        folder: Where the files go.
        earlier: The earlier plan, if any.

    Returns:
        Token, priority and position of each candidate, `[candidates]` each, memory-mapped.
    """
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
    tokens, priorities, positions = (
        np.memmap(path, dtype=dtype, mode="r") for path, dtype in zip(paths, CANDIDATES.values())
    )
    return tokens, priorities, positions


def _mix(x: np.ndarray) -> np.ndarray:
    """Scramble 64-bit numbers: the finalizer of splitmix64.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _between(values: np.ndarray, low: int, high: int) -> np.ndarray:
    """Return the indices of the values from `low` up to but not including `high`."""
    return np.flatnonzero((values >= low) & (values < high))
