"""Is a sense dictionary valid? Its structure is checked at every load, its numbers where they are read."""

import math

import torch
from torch import Tensor

from .configuration_sense_embedding import SENSES_DTYPES, SenseEmbeddingConfig

CHUNK = 1 << 24  # numbers that are checked at a time


def check_structure(
    config: SenseEmbeddingConfig, senses: Tensor, offsets: Tensor, usage: Tensor, scales: Tensor | None
) -> None:
    """Check all of a dictionary but the numbers in its table, which may be larger than the memory.

    Args:
        config: The config of the dictionary.
        senses: `[total_senses, hidden]`, the table; only its shape and dtype are read.
        offsets: `[vocab + 1]`.
        usage: `[total_senses]`.
        scales: `[total_senses]` for an int8 table, else None.

    Raises:
        ValueError: The dictionary is not valid.
    """
    total = config.num_senses
    shapes = {"senses": (total, config.hidden_size), "offsets": (config.vocab_size + 1,), "usage": (total,)}
    dtypes = {"senses": SENSES_DTYPES[config.senses_dtype], "offsets": torch.int64, "usage": torch.int64}
    tensors = {"senses": senses, "offsets": offsets, "usage": usage}
    if config.senses_dtype == "int8":
        shapes["scales"], dtypes["scales"] = (total,), torch.float32
    if scales is not None:
        tensors["scales"] = scales
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    wrong = [name for name in sorted({*shapes, *found}) if found.get(name) != (shapes.get(name), dtypes.get(name))]
    if wrong:
        raise ValueError(f"the dictionary is not valid: its {', '.join(wrong)} do not fit its config; build it again")
    if int(offsets[0]) != 0 or int(offsets[-1]) != total or bool((offsets.diff() < 0).any()):
        raise ValueError(
            f"the dictionary is not valid: its offsets do not rise from 0 to {total}, its number of senses; build it "
            "again"
        )
    if bool((usage < 0).any()):
        raise ValueError("the dictionary is not valid: a usage is negative; build it again")
    if scales is not None and not bool((scales.isfinite() & (scales >= 0)).all()):
        raise ValueError("the dictionary is not valid: a scale is negative or not finite; build it again")


def check_finite(senses: Tensor) -> Tensor:
    """Check that all senses are finite.

    Args:
        senses: `[rows, hidden]`, rows of a table.

    Returns:
        The same tensor.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    if senses.is_floating_point():
        step = max(1, CHUNK // max(1, math.prod(senses.shape[1:])))
        for begin in range(0, len(senses), step):
            if not bool(senses[begin : begin + step].isfinite().all()):
                raise ValueError("a sense is NaN or infinite, so the dictionary is not valid: build it again")
    return senses
