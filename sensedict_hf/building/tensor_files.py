"""Safetensors files that are memory-mapped and written in place.

The safetensors library maps files for reading (`load_file`), and writes a file from tensors in memory. A build needs
more: files larger than memory, which several processes fill in parallel. So :func:`create_tensor_file` makes a file of
zeros and returns its tensors as views of the mapped file. What is written to a view goes to the file, and survives if
the process is killed. Other libraries read the finished file as any safetensors file.
"""

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..models.saved_tensors import STORED_DTYPES

DTYPES = {name: dtype for dtype, name in STORED_DTYPES.items()}
Tensors = Mapping[str, Tensor]


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file, as views of the memory-mapped file: what is written to them goes to the file.

    Args:
        path: The file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        # The layout: the length of the header in 8 bytes, the header as JSON, the bytes of the tensors.
        begin = 8 + int.from_bytes(self._map[:8], "little")
        header = json.loads(self._map[8:begin])
        header.pop("__metadata__", None)
        self._tensors = {name: self._view(entry, begin) for name, entry in header.items()}

    def _view(self, entry: dict[str, Any], begin: int) -> Tensor:
        """Make the tensor of one entry of the header; its bytes are counted from `begin`."""
        dtype, count = DTYPES[entry["dtype"]], math.prod(entry["shape"])
        if not count:
            return torch.empty(entry["shape"], dtype=dtype)
        flat = torch.frombuffer(self._map, dtype=dtype, count=count, offset=begin + entry["data_offsets"][0])
        return flat.view(entry["shape"])

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def flush(self) -> None:
        """Wait until all changes are on the disk."""
        self._map.flush()


def create_tensor_file(
    path: str | os.PathLike[str], tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]
) -> TensorFile:
    """Create a file of zeros and open it for writing.

    Args:
        path: The file; an existing one is overwritten.
        tensors: Dtype and shape of each tensor, by name.

    Returns:
        The writable file.

    Raises:
        OSError: The disk has no room for the file.
    """
    # Wide dtypes come first, so that each tensor begins at a multiple of its item size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1][0].itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in ordered:
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": STORED_DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        size = file.tell() + end
        if end:
            _allocate(file, size)
    return TensorFile(path)


def create_array(path: Path, dtype: type, length: int) -> np.ndarray:
    """Create a file of zeros without a header, and map it for writing.

    Args:
        path: The file; an existing one is overwritten.
        dtype: Dtype of the numbers.
        length: How many numbers there are.

    Raises:
        OSError: The disk has no room for the file.
    """
    with open(path, "wb") as file:
        _allocate(file, max(1, length * np.dtype(dtype).itemsize))
    return np.memmap(path, dtype=dtype, mode="r+", shape=(length,))


def _allocate(file: BinaryIO, size: int) -> None:
    """Reserve the space of a file now: on a full disk, a later write to its map would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    file.truncate(size)


def write_tensor_file(path: str | os.PathLike[str], tensors: dict[str, Tensor]) -> None:
    """Write tensors to a file. If the process is killed meanwhile, there is no file of this name.

    Args:
        path: The file; an existing one is replaced.
        tensors: The tensors by name, on the CPU.
    """
    partial = Path(f"{path}.partial")
    file = create_tensor_file(partial, {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        file[name].copy_(tensor)
    file.flush()
    partial.replace(path)
