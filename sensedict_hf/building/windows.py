"""Texts as token ids, and the windows that fit the teacher.

A text may be longer than the teacher's limit. It is then cut into windows that overlap by a quarter, each with the
text's special tokens around it. A token in an overlap is shown by two windows, but owned by one of them: the earlier
window owns the first half of the overlap, the later one the second half. A token's vector is taken from the window
that owns it. So every token has exactly one vector, and context on both sides. For example, windows of 8 tokens over a
text of 12 tokens (`o` is owned, `.` is only shown):

    token      0  1  2  3  4  5  6  7  8  9 10 11
    window 0   o  o  o  o  o  o  .  .
    window 1               .  .  o  o  o  o  o  o

If the teacher has another tokenizer than the dictionary, the corpus holds each text twice. Windows are then cut from
the teacher's tokens. A token of the dictionary belongs to the window that owns the first of the teacher's tokens it
aligns with.

In this file and the files that use it, a position is the index of a token in the whole corpus, a place its index in
its text.
"""

from dataclasses import dataclass, replace

import numpy as np

from ..models.windows import Windows, cut_windows, window_width
from .alignment import ranges


@dataclass
class TokenizedCorpus:
    """The token ids of all texts, one text after the other; memory-mapped if the corpus is on disk.

    Attributes:
        input_ids: Token ids, special tokens included, `[tokens]`, int32.
        offsets: Where each text begins in `input_ids`, and where the last one ends, `[texts + 1]`, int64.
        digests: A hash of each text's token ids, `[texts]`, uint64.
        prefix: Number of special tokens before each text; with a prompt, of all tokens before it.
        suffix: Number of special tokens after each text; with a prompt, of all tokens after it.
        dropped: Number of tokens that truncation has cut off.
        unpooled: Numbers of `prefix` and of `suffix` tokens that belong to a prompt that is not pooled. They get no
            senses.
        alignment: The teacher's tokens, if the teacher has another tokenizer.
        shift: How many positions before a token is the state that it takes its vector from: 0, or 1 if states are
            keyed by the next token.
    """

    input_ids: np.ndarray
    offsets: np.ndarray
    digests: np.ndarray
    prefix: int
    suffix: int
    dropped: int = 0
    unpooled: tuple[int, int] = (0, 0)
    alignment: "Alignment | None" = None
    shift: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def keyed_by(self, key: str) -> "TokenizedCorpus":
        """Return the same corpus with the given key, see :class:`SenseEmbeddingConfig`.

        Args:
            key: `input` or `next`. With `next` the corpus must not have an alignment.
        """
        return replace(self, shift=int(key == "next"))

    @property
    def shown(self) -> "TokenizedCorpus":
        """The texts in the teacher's tokens: what the teacher reads."""
        return self if self.alignment is None else self.alignment.teacher

    def has_vectors(self, begin: int, end: int) -> np.ndarray:
        """Return which positions get a vector: those that align with the teacher and whose state is not of a prompt.

        Args:
            begin: First position.
            end: Position after the last.

        Returns:
            `[end - begin]`, bool.
        """
        if self.alignment is not None:
            return np.diff(self.alignment.bounds[begin : end + 1]) > 0
        found = np.ones(end - begin, dtype=bool)
        if self.shift:
            # A token that begins a text has no state before it.
            first, last = np.searchsorted(self.offsets, [begin, end])
            found[self.offsets[first:last] - begin] = False
        if any(self.unpooled):
            # All texts that overlap with the range, and the positions of their prompts.
            begin, end = begin - self.shift, end - self.shift
            first, last = np.searchsorted(self.offsets, [max(begin, 0), end], side="right") - 1
            bounds = self.offsets[first : min(last + 2, len(self.offsets))]
            before, after = self.unpooled
            heads = bounds[:-1, None] + np.arange(before)
            tails = bounds[1:, None] - 1 - np.arange(after)
            prompts = np.concatenate([heads.ravel(), tails.ravel()])
            found[prompts[(prompts >= begin) & (prompts < end)] - begin] = False
        return found

    def first_shown(self, positions: np.ndarray) -> np.ndarray:
        """Return the first position in `shown` that each token takes its vector from.

        Args:
            positions: `[n]`; all of them must align.

        Returns:
            `[n]`.
        """
        if self.alignment is None:
            return positions - self.shift
        return self.alignment.places[self.alignment.bounds[positions]] + self._origin(positions)

    def all_shown(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return all positions in `shown` that tokens take their vectors from.

        Args:
            positions: `[n]`.

        Returns:
            How many states each token has, `[n]`, and their positions, `[sum]`, token by token.
        """
        if self.alignment is None:
            return np.ones_like(positions), positions - self.shift
        begin = self.alignment.bounds[positions]
        sizes = self.alignment.bounds[positions + 1] - begin
        return sizes, self.alignment.places[ranges(begin, sizes)] + np.repeat(self._origin(positions), sizes)

    def windows(self, max_length: int, first: int = 0, last: int | None = None) -> Windows:
        """Cut texts into windows; a text that fits is one window.

        Args:
            max_length: Length of a window in tokens, special tokens included.
            first: Index of the first text.
            last: Index after the last text. None: to the end of the corpus.

        Returns:
            The windows, in the order of the texts. What they own is counted with special tokens.

        Raises:
            ValueError: The special tokens leave too few tokens for the text.
        """
        specials = self.prefix + self.suffix
        width = window_width(max_length, specials)
        lengths = np.diff(self.offsets[first : len(self) + 1 if last is None else last + 1])
        windows = cut_windows(lengths - specials, width)
        text, own_start, own_stop = windows.text, windows.own_start, windows.own_stop
        # The first window of a text owns the special tokens before it, the last one those after it.
        is_last = own_stop == (lengths - specials)[text]
        windows.own_start = np.where(own_start == 0, 0, own_start + self.prefix)
        windows.own_stop = np.where(is_last, lengths[text], own_stop + self.prefix)
        windows.text = text + first
        return windows

    def window_positions(self, text: int, start: int, stop: int) -> np.ndarray:
        """Return the positions that a window shows, special tokens included.

        Args:
            text: Index of the text.
            start: First content token that the window shows.
            stop: End of the content tokens that the window shows.

        Returns:
            `[prefix + stop - start + suffix]`.
        """
        begin, end = self.offsets[text : text + 2]
        content = np.arange(begin + self.prefix + start, begin + self.prefix + stop)
        return np.concatenate([np.arange(begin, begin + self.prefix), content, np.arange(end - self.suffix, end)])

    def window_ids(self, text: int, start: int, stop: int) -> np.ndarray:
        """Return the token ids at :meth:`window_positions`.

        Args:
            text: Index of the text.
            start: First content token that the window shows.
            stop: End of the content tokens that the window shows.
        """
        return self.input_ids[self.window_positions(text, start, stop)]

    def _origin(self, positions: np.ndarray) -> np.ndarray:
        """Return where the text of each token begins in `shown`."""
        return self.shown.offsets[np.searchsorted(self.offsets, positions, side="right") - 1]


@dataclass
class Alignment:
    """How the tokens of a corpus align with the teacher's tokens; see :class:`AlignedText`.

    Attributes:
        teacher: The same texts in the teacher's tokens.
        places: Places of the teacher's tokens in their text, `[pairs]`, int32.
        bounds: The token at position t aligns with `places[bounds[t]:bounds[t + 1]]`; `[tokens + 1]`, int64.
        unaligned: Number of tokens that align with none, special tokens not counted.
    """

    teacher: TokenizedCorpus
    places: np.ndarray
    bounds: np.ndarray
    unaligned: int
