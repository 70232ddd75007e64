"""Checks of arguments and settings: by name, type and range, once, where they come in."""

import math
import os
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Names of rules by which accelerate spreads a model over devices, and of the device without values.
DEVICE_MAPS = ("auto", "meta", "balanced", "balanced_low_0", "sequential")


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
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a huge integer
        number = math.inf
    is_high = (above is None or number > above) and (least is None or number >= least)
    if math.isfinite(number) and is_high and (most is None or number <= most):
        return number
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
    if not isinstance(value, str) or value not in tuple(allowed):
        raise ValueError(f"unknown {name} {value!r:.60}: choose one of {', '.join(allowed)}")


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


def check_path(name: str, value: Any) -> Path:
    """Check an argument that must name a file or a folder.

    Args:
        name: Name of the argument.
        value: Its value.

    Returns:
        The path.

    Raises:
        ValueError: It is no path, or empty.
    """
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise ValueError(f"{name}={value!r:.60}: give the name of a file or folder")
    return Path(value)


def check_folder(name: str, value: Any) -> Path:
    """Check an argument that must name a folder, which need not exist.

    Args:
        name: Name of the argument.
        value: Its value.

    Returns:
        The folder.

    Raises:
        ValueError: It is no path, empty, or the name of a file.
    """
    folder = check_path(name, value)
    if folder.is_file():
        raise ValueError(f"{name}={str(value)!r} is a file: give the name of a folder")
    return folder


def check_flags(**flags: Any) -> None:
    """Check arguments that must be booleans, see :func:`check_flag`.

    Args:
        flags: The arguments by name.

    Raises:
        ValueError: One of them is no boolean.
    """
    for name, value in flags.items():
        check_flag(name, value)


def check_string(name: str, value: Any) -> None:
    """Check an argument that must be a string.

    Args:
        name: Name of the argument.
        value: Its value.

    Raises:
        ValueError: It is no string, or empty.
    """
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name}={value!r:.60}: give a string")


def check_kind(name: str, value: Any, kinds: type | tuple[type, ...], advice: str) -> None:
    """Check an argument that must be an object of a class.

    Args:
        name: Name of the argument.
        value: Its value.
        kinds: The classes that are allowed.
        advice: What the message tells to pass.

    Raises:
        ValueError: It is of another class.
    """
    if not isinstance(value, kinds):
        raise ValueError(f"{name} is {type(value).__name__}: pass {advice}")


def check_device(name: str, value: Any) -> torch.device | None:
    """Check an argument that must name a device of this machine, or be None.

    Args:
        name: Name of the argument.
        value: Its value: a device of torch, its name, or the number of an accelerator.

    Returns:
        The device; None stays None.

    Raises:
        ValueError: There is no such device.
    """
    if value is None:
        return None
    try:
        check_kind(name, value, (str, int, torch.device), "a device")
        device = torch.device(value)
        if isinstance(value, bool) or device.type == "meta":  # tensors on `meta` have no values
            raise ValueError("not a device that computes")
        torch.empty(0, device=device)
    except Exception as error:  # torch raises whatever the backend does
        gpus = torch.cuda.device_count()
        allowed = f"cpu, or cuda:0 to cuda:{gpus - 1}" if gpus else "cpu, as there is no GPU that torch can use"
        raise ValueError(f"{name}={str(value)!r:.60} cannot be used: choose {allowed}") from error
    return device


def check_device_map(value: Any) -> None:
    """Check the argument `device_map` of `from_pretrained`.

    Args:
        value: None, a device, the name of a rule of accelerate, or a dictionary that accelerate reads.

    Raises:
        ValueError: There is no such device or rule.
    """
    if not isinstance(value, dict) and str(value) not in DEVICE_MAPS:
        check_device("device_map", value)


def check_dtype(name: str, value: Any) -> None:
    """Check an argument that must be a dtype of weights.

    Args:
        name: Name of the argument.
        value: Its value: None, `auto`, a floating dtype of torch or its name, or one for each part of a model.

    Raises:
        ValueError: It is none of these.
    """
    for one in value.values() if isinstance(value, dict) else [value]:
        dtype = getattr(torch, one.removeprefix("torch."), None) if isinstance(one, str) else one
        if one not in (None, "auto") and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"{name}={one!r:.60}: give 'auto' or a floating dtype, such as 'float32' or 'bfloat16'")


def is_traced() -> bool:
    """Return whether torch is tracing a model now, so that no number can be read from a tensor and checked."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def check_unicode(text: str, name: str) -> None:
    """Raise a ValueError if a text has a lone surrogate, which tokenizers cannot read.

    Args:
        text: The text.
        name: What the text is called in the message.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} ({text[:40]!a}) has a lone surrogate, half of a character, at {error.start}: remove it, or "
            "replace it with text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        ) from error
