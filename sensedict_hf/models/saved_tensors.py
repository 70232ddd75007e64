"""The files of a checkpoint, checked by their headers before any tensor is read.

A header tells name, dtype and shape of every tensor, so a checkpoint that does not fit its config is refused without
reading or allocating anything of its size.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from .files import find_file, read_object

WEIGHTS = "model.safetensors"
# Tensors that a checkpoint must hold: random values would be useless.
DICTIONARY_TENSORS = ("senses", "offsets", "usage", "scales")
# The scales of int8 tables of a student without layers. They have the dtype of the student.
TABLE_SCALES = "_embeddings.scales"
FLOATS = ("F64", "F32", "F16", "BF16")
# The names that safetensors gives to dtypes.
STORED_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.bool: "BOOL",
}


class StoredTensor(NamedTuple):
    """What a header tells of a tensor.

    Attributes:
        dtype: As safetensors names it, such as `F16`.
        shape: Its shape.
    """

    dtype: str
    shape: tuple[int, ...]


def read_headers(source: str, options: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Read the headers of the safetensors files of a model.

    Args:
        source: A folder or a repository of the Hub.
        options: Arguments of `from_pretrained` that say where files are, and `variant`.

    Returns:
        What is stored, by the name of the tensor.

    Raises:
        ValueError: There are no safetensors files, or one is damaged.
    """
    where = {name: value for name, value in options.items() if name != "variant"}

    def find(name: str) -> Path | None:
        return find_file(source, name, **where)

    variant = f".{options['variant']}" if options.get("variant") else ""
    name = f"model{variant}.safetensors" if variant else WEIGHTS
    whole = find(name)
    index = None if whole else find(f"{WEIGHTS}.index{variant}.json")
    if whole:
        return _read_header(whole)
    if not index:
        raise ValueError(
            f"{source} holds no {name}: only safetensors files are loaded, as others can run code; load the model "
            "where it was made, and save it again with save_pretrained"
        )
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError(f"{index} is broken (it has no weight_map)")
    headers: dict[str, StoredTensor] = {}
    for shard in sorted(set(shards.values())):
        path = find(shard) if os.path.basename(shard) == shard else None
        if path is None:
            raise ValueError(f"{source} has no file {shard!r}, which {index.name} names: download or save it again")
        headers |= _read_header(path)
    return headers


def _read_header(path: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            return {name: StoredTensor(one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): download or save it again") from error


def find_misfits(
    model: PreTrainedModel, headers: Mapping[str, StoredTensor], *, learn_senses: bool, ignore_head: bool
) -> list[str]:
    """Find the tensors on which a model and its files do not agree.

    Tensors of a backbone that are not in the files are left out: transformers may store them by other names.

    Args:
        model: The model as its config describes it, on the meta device.
        headers: What is stored.
        learn_senses: Whether the table is a parameter, which is loaded from any dtype.
        ignore_head: Whether tensors of the head may have other sizes.

    Returns:
        Names of tensors that have another size. Those of the dictionary and of int8 tables also if they are missing,
        not expected, or of another dtype.
    """
    prefix = f"{model.base_model_prefix}."
    expected = model.state_dict()
    stored = {}
    for name, tensor in headers.items():
        # A model without a head reads the files of one with a head, and the other way round.
        names = (name, name.removeprefix(prefix), prefix + name)
        stored[next((one for one in names if one in expected), name)] = tensor
    wrong = [
        name
        for name, tensor in expected.items()
        if (name in stored and stored[name].shape != tuple(tensor.shape))
        and not (ignore_head and is_head(model, name))
    ]
    for name in {*expected, *stored}:
        kind = name.rpartition(".")[2]
        is_table = name in expected and expected[name].dtype == torch.int8  # floats would be cut to integers
        if kind not in DICTIONARY_TENSORS and not is_table:
            continue
        is_float = name.endswith(TABLE_SCALES) or (kind == "senses" and learn_senses)
        if name not in expected or name not in stored:
            wrong.append(name)
        elif stored[name].dtype not in (FLOATS if is_float else (STORED_DTYPES[expected[name].dtype],)):
            wrong.append(name)
    return sorted(set(wrong))


def is_head(model: PreTrainedModel, name: str) -> bool:
    """Return whether a tensor belongs to the head of a model."""
    return model.base_model is not model and not name.startswith(f"{model.base_model_prefix}.")
