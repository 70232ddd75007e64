"""Cutting long texts into overlapping windows, so that every token gets one vector, with context on both sides."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST_WIDTH = 4  # tokens of a text in a window; fewer give no context


@dataclass
class Windows:
    """Windows of texts; all arrays are `[windows]`, int64.

    A window shows the tokens `start:stop` of a text. It owns the tokens `own_start:own_stop`, which take their vectors
    from it.

    Attributes:
        text: Index of the text.
        start: First token that the window shows, special tokens not counted.
        stop: End of the tokens that the window shows, special tokens not counted.
        own_start: First token that the window owns.
        own_stop: End of the tokens that the window owns.
    """

    text: NDArray[Any]
    start: NDArray[Any]
    stop: NDArray[Any]
    own_start: NDArray[Any]
    own_stop: NDArray[Any]

    def __len__(self) -> int:
        return len(self.text)


def window_width(max_length: int, specials: int) -> int:
    """Return how many tokens of a text a window shows.

    Args:
        max_length: Length of a window in tokens, special tokens included.
        specials: Number of tokens around a text: special tokens, and the prompt.

    Raises:
        ValueError: There are too few.
    """
    width = max_length - specials
    if width < SMALLEST_WIDTH:
        raise ValueError(
            f"max_length={max_length} leaves {max(0, width)} tokens for a text, as special tokens and prompt take "
            f"{specials}: choose {specials + SMALLEST_WIDTH} or more, a shorter prompt, or a model that reads more"
        )
    return width


def cut_windows(lengths: NDArray[Any], width: int) -> Windows:
    """Cut texts into windows that overlap by a quarter; a text that fits is one window.

    The middle of an overlap divides the ownership.

    Args:
        lengths: Tokens of each text, special tokens not counted, `[texts]`.
        width: The most tokens that a window shows, at least `SMALLEST_WIDTH`.

    Returns:
        The windows, in the order of the texts.
    """
    stride = width - width // 4
    pieces = 1 + np.maximum(0, -(-(lengths - width) // stride))
    text = np.repeat(np.arange(len(lengths)), pieces)
    number = np.arange(len(text)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    is_first, is_last = number == 0, number == pieces[text] - 1
    # The last window ends with the text; its overlap may be larger.
    start = np.where(is_last, np.maximum(lengths[text] - width, 0), number * stride)
    stop = np.minimum(start + width, lengths[text])
    # Each window shows one token more than it owns, for the states that predict that token.
    border = np.minimum((start[1:] + stop[:-1] + 1) // 2, stop[:-1] - 1)
    own_start = np.where(is_first, 0, np.append(0, border))
    own_stop = np.where(is_last, lengths[text], np.append(border, 0))
    return Windows(text, start, stop, own_start, own_stop)
