"""Checks of arguments and settings: by name, type and range, once, where they come in."""

import os
import sys
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch


def check_integer(name: str, value: Any, least: int | None = None, below: int | None = None) -> int:
    """Check an argument that must be an integer.

    Args:
        name: Name of the argument.
        value: Its value: an integer of Python or numpy. Booleans and floats such as `10.0` are refused.
        least: The smallest value that is allowed. None: any.
        below: The smallest value that is too large. None: any.

    Returns:
        The value as an `int`.

    Raises:
        ValueError: The value is no integer or out of range.
    """
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if is_integer and (least is None or value >= least) and (below is None or value < below):
        return int(value)
    bounds = "" if least is None else f" of at least {least}"
    bounds += "" if below is None else f" and below {below}"
    raise ValueError(f"{name}={value!r}: give an integer{bounds}")


def check_number(
    name: str, value: Any, *, above: float | None = None, least: float | None = None, most: float | None = None
) -> float:
    """Check an argument that must be a number.

    Args:
        name: Name of the argument.
        value: Its value: a number of Python or numpy. Booleans, NaN and infinity are refused.
        above: The value must be larger than this. None: any.
        least: The smallest value that is allowed. None: any.
        most: The largest value that is allowed. None: any.

    Returns:
        The value as a `float`.

    Raises:
        ValueError: The value is no finite number or out of range.
    """
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    is_number = is_real and abs(value) <= sys.float_info.max  # False for NaN
    is_high = (above is None or is_number and value > above) and (least is None or is_number and value >= least)
    if is_number and is_high and (most is None or value <= most):
        return float(value)
    limits = [("above", above), ("of at least", least), ("of at most", most)]
    bounds = " and ".join(f"{word} {limit}" for word, limit in limits if limit is not None)
    raise ValueError(f"{name}={value!r}: give a finite number {bounds}".rstrip())


def check_flag(name: str, value: Any) -> bool:
    """Check an argument that must be a boolean.

    Args:
        name: Name of the argument.
        value: Its value: a boolean of Python or numpy.

    Returns:
        The value as a `bool`.

    Raises:
        ValueError: The value is no boolean.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}={value!r}: give True or False")
    return bool(value)


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Check an argument that must be one of some names.

    Args:
        name: Name of the argument.
        value: Its value.
        allowed: The names.

    Raises:
        ValueError: It is none of them.
    """
    if value not in tuple(allowed):
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(allowed)}")


def check_metadata(name: str, value: Any) -> None:
    """Check an argument that holds metadata of a model card, or None.

    Args:
        name: Name of the argument.
        value: Its value: strings and lists of strings, by their names.

    Raises:
        ValueError: It holds something else.
    """
    if value is not None and not (isinstance(value, dict) and all(map(is_text, value.values()))):
        raise ValueError(f"{name}={value!r:.80}: give strings and lists of strings by their names, or None")


def is_text(value: Any) -> bool:
    """Return whether a value is a string or a list of strings."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value))


def check_path(name: str, value: Any) -> None:
    """Check an argument that must name a file or a folder.

    Args:
        name: Name of the argument.
        value: Its value.

    Raises:
        ValueError: It is no path, or empty.
    """
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise ValueError(f"{name}={value!r}: give the name of a folder")


def is_traced() -> bool:
    """Return whether torch is tracing a model now, so that no number can be read from a tensor and checked."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
