"""The sampling plan: which occurrences of each token the dictionary is fitted on."""

from dataclasses import dataclass

import numpy as np

from .corpus import TokenizedCorpus

CHUNK = 1 << 22


@dataclass
class SamplingPlan:
    """Which occurrences are sampled, and where each of them is stored.

    Attributes:
        counts: `[vocab]`, occurrences of each token in the corpus (0 for tokens that are left out).
        offsets: `[vocab + 1]`: the samples of token t are the slots `offsets[t]:offsets[t + 1]`, `min(counts[t], cap)` of them.
        positions: `[samples]`, for every slot its place in the corpus' token ids.
    """

    counts: np.ndarray
    offsets: np.ndarray
    positions: np.ndarray


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _text_keys(digests: np.ndarray, seed: int) -> np.ndarray:
    """A pseudo-random number for each text from its content; equal texts are told apart by their number among their equals."""
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    occurrence = np.empty(len(digests), dtype=np.uint64)
    occurrence[order] = np.arange(len(digests)) - np.repeat(starts, np.diff(np.append(starts, len(digests))))
    return _mix(_mix(_mix(np.uint64(seed) + occurrence * np.uint64(0x9E3779B97F4A7C15)) ^ digests) + np.uint64(1))


def _lowest(tokens: np.ndarray, priorities: np.ndarray, cap: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the `cap` lowest priorities of each token, sorted by token and priority, and each one's rank among its token's."""
    order = np.lexsort((priorities, tokens))
    ordered = tokens[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return order[rank < cap], rank[rank < cap]


def plan_samples(
    corpus: TokenizedCorpus, vocab_size: int, max_samples_per_token: int, *, seed: int = 0, exclude: tuple[int, ...] = ()
) -> SamplingPlan:
    """Draws up to `max_samples_per_token` occurrences of every token, uniformly and without replacement.

    An occurrence is drawn if its priority, a hash of the seed, its text's token ids, its position and its token, is among the lowest
    of its token: the sample depends neither on the order of the texts nor on batches, shards or restarts.

    Args:
        exclude: token ids that get no samples (padding).

    Raises:
        ValueError: the corpus holds a token id outside the vocabulary.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    keys = _text_keys(corpus.digests, seed)
    limits = np.full(vocab_size, np.iinfo(np.uint64).max, dtype=np.uint64)
    limits[list(exclude)] = 0
    kept_tokens, kept_priorities, kept_positions = np.empty(0, np.int32), np.empty(0, np.uint64), np.empty(0, np.int64)
    for begin in range(0, len(corpus.input_ids), CHUNK):
        tokens = np.asarray(corpus.input_ids[begin : begin + CHUNK])
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            bad = tokens[(tokens < 0) | (tokens >= vocab_size)][0]
            raise ValueError(f"token id {bad} is outside the vocabulary of {vocab_size} tokens: the tokenizer does not belong to the model")
        counts += np.bincount(tokens, minlength=vocab_size)
        positions = np.arange(begin, begin + len(tokens))
        text = np.searchsorted(corpus.offsets, positions, side="right") - 1
        place = (positions - corpus.offsets[text]).astype(np.uint64)
        priorities = _mix(_mix(keys[text] + place * np.uint64(0x9E3779B97F4A7C15)) ^ tokens.astype(np.uint64))
        drawn = priorities < limits[tokens]
        kept_tokens = np.concatenate([kept_tokens, tokens[drawn]])
        kept_priorities = np.concatenate([kept_priorities, priorities[drawn]])
        kept_positions = np.concatenate([kept_positions, positions[drawn]])
        best, rank = _lowest(kept_tokens, kept_priorities, max_samples_per_token)
        kept_tokens, kept_priorities, kept_positions = kept_tokens[best], kept_priorities[best], kept_positions[best]
        full = rank == max_samples_per_token - 1
        limits[kept_tokens[full]] = kept_priorities[full]
    counts[list(exclude)] = 0
    sizes = np.minimum(counts, max_samples_per_token)
    return SamplingPlan(counts, np.concatenate([[0], np.cumsum(sizes)]), kept_positions)
