"""Texts as token ids on disk, and the windows of them that fit the model."""

from dataclasses import dataclass

import numpy as np

from .alignment import ranges

SMALLEST_WIDTH = 4  # tokens of a text in a window: fewer give no context


@dataclass
class Windows:
    """Parts of texts that fit the model; arrays `[windows]`.

    Window w shows the content tokens `start:stop` of text `text`, between the text's special tokens, and owns the positions
    `own_start:own_stop` of that text (special tokens counted). Every position of a text is owned by exactly one window.
    """

    text: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    own_start: np.ndarray
    own_stop: np.ndarray

    def __len__(self) -> int:
        return len(self.text)


@dataclass
class TokenizedCorpus:
    """Token ids of all texts, special tokens included, one behind the other, in memory-mapped files.

    Attributes:
        input_ids: `[tokens]`, int32. offsets: `[texts + 1]`, int64. digests: `[texts]`, uint64, of each text's token ids.
        prefix, suffix: number of special tokens before and behind each text.
        dropped: number of tokens cut off by truncation.
        without: of the tokens before and behind each text, how many the dictionary leaves out.
        alignment: with the teacher's tokens, if the teacher has another tokenizer.
    """

    input_ids: np.ndarray
    offsets: np.ndarray
    digests: np.ndarray
    prefix: int
    suffix: int
    dropped: int = 0
    without: tuple[int, int] = (0, 0)
    alignment: "Alignment | None" = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def shown(self) -> "TokenizedCorpus":
        """The same texts in the teacher's tokens: what the teacher is shown, and windows are cut from."""
        return self if self.alignment is None else self.alignment.teacher

    def has_vectors(self, begin: int, end: int) -> np.ndarray:
        """Which of the tokens `begin:end` have vectors that are looked at, `[end - begin]`: those that align with any of the teacher's,
        and are not part of a prompt."""
        if self.alignment is not None:
            return np.diff(self.alignment.bounds[begin : end + 1]) > 0
        found = np.ones(end - begin, dtype=bool)
        if any(self.without):
            first, last = np.searchsorted(self.offsets, [begin, end], side="right") - 1
            bounds = self.offsets[first : min(last + 2, len(self.offsets))]
            before, behind = self.without
            left_out = np.concatenate(
                [(bounds[:-1, None] + np.arange(before)).ravel(), (bounds[1:, None] - 1 - np.arange(behind)).ravel()]
            )
            found[left_out[(left_out >= begin) & (left_out < end)] - begin] = False
        return found

    def first_places(self, positions: np.ndarray) -> np.ndarray:
        """Where tokens that align stand in `shown.input_ids`: the first place of each."""
        return (
            positions
            if self.alignment is None
            else self.alignment.places[self.alignment.bounds[positions]] + self._origin(positions)
        )

    def all_places(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """With how many of the teacher's tokens each token aligns, and all their places in `shown.input_ids`, token by token."""
        if self.alignment is None:
            return np.ones_like(positions), positions
        begin = self.alignment.bounds[positions]
        sizes = self.alignment.bounds[positions + 1] - begin
        return sizes, self.alignment.places[ranges(begin, sizes)] + np.repeat(self._origin(positions), sizes)

    def _origin(self, positions: np.ndarray) -> np.ndarray:
        """Where the text of each token begins in `shown.input_ids`."""
        return self.shown.offsets[np.searchsorted(self.offsets, positions, side="right") - 1]

    def windows(self, max_length: int, first: int = 0, last: int | None = None) -> Windows:
        """Cuts the texts `first:last`, where longer than `max_length`, into windows that overlap by a quarter; the middle of an overlap
        divides the ownership, so that an owned token has context on both sides."""
        width = max_length - self.prefix - self.suffix
        if width < SMALLEST_WIDTH:
            raise ValueError(
                f"max_length={max_length} leaves {max(0, width)} tokens of a text beside the {self.prefix + self.suffix} around it: give "
                f"{self.prefix + self.suffix + SMALLEST_WIDTH} or more, or a shorter prompt"
            )
        stride = width - width // 4
        lengths = np.diff(self.offsets[first : len(self) + 1 if last is None else last + 1])
        content = lengths - self.prefix - self.suffix
        pieces = 1 + np.maximum(0, -(-(content - width) // stride))
        text = np.repeat(np.arange(len(lengths)), pieces)
        number = np.arange(len(text)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        is_first, is_last = number == 0, number == pieces[text] - 1
        start = np.where(is_last, np.maximum(content[text] - width, 0), number * stride)
        stop = np.minimum(start + width, content[text])
        border = (start[1:] + stop[:-1] + 1) // 2 + self.prefix
        own_start = np.where(is_first, 0, np.concatenate([[0], border]))
        own_stop = np.where(is_last, lengths[text], np.concatenate([border, [0]]))
        return Windows(text + first, start, stop, own_start, own_stop)

    def window_places(self, text: int, start: int, stop: int) -> np.ndarray:
        """Where the tokens of one window stand in `input_ids`, special tokens included; position p of the text is at `p - start`."""
        begin, end = self.offsets[text : text + 2]
        content = np.arange(begin + self.prefix + start, begin + self.prefix + stop)
        return np.concatenate([np.arange(begin, begin + self.prefix), content, np.arange(end - self.suffix, end)])

    def window_ids(self, text: int, start: int, stop: int) -> np.ndarray:
        """The token ids of one window, special tokens included."""
        return self.input_ids[self.window_places(text, start, stop)]


@dataclass
class Alignment:
    """How the tokens of a corpus align with those of the teacher, in memory-mapped files; see [`AlignedText`].

    Attributes:
        teacher: the same texts in the teacher's tokens.
        places: `[pairs]`, int32, of the teacher's tokens in their text. bounds: `[tokens + 1]`, int64: those of token t are
            `places[bounds[t]:bounds[t + 1]]`.
        unaligned: number of tokens, special ones apart, that align with none.
    """

    teacher: TokenizedCorpus
    places: np.ndarray
    bounds: np.ndarray
    unaligned: int
