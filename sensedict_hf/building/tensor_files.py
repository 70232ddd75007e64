"""Files of tensors that are written in place: the safetensors format, memory-mapped.

A mapped file costs no memory of the process, several processes can write disjoint parts of it, and what was written survives their
being killed. The library reads this format mapped, but writes it only from memory.
"""

import json
import math
import mmap
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}
# Mapped for reading, a file of any size can be opened; torch has no tensors that are read-only, and says so.
warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each a view of the mapped file.

    Args:
        writable: changes of the tensors go to the file; without it, to change them is an error that ends the process.
    """

    def __init__(self, path: str | os.PathLike, *, writable: bool = False):
        with open(path, "r+b" if writable else "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
        begin = 8 + int.from_bytes(self._map[:8], "little")
        self._tensors = {}
        for name, entry in json.loads(self._map[8:begin]).items():
            if name != "__metadata__":
                dtype, count, offset = (
                    DTYPES[entry["dtype"]],
                    math.prod(entry["shape"]),
                    begin + entry["data_offsets"][0],
                )
                flat = (
                    torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset)
                    if count
                    else torch.empty(0, dtype=dtype)
                )
                self._tensors[name] = flat.view(entry["shape"])

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def flush(self) -> None:
        """Waits until the disk has it all."""
        self._map.flush()


def create_tensor_file(
    path: str | os.PathLike, tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]], *, sparse: bool = False
) -> TensorFile:
    """Makes a file of zeros and opens it for writing.

    Args:
        tensors: dtype and shape of each. sparse: takes no room on disk before something is written.

    Raises:
        OSError: the disk has no room for it (unless sparse).
    """
    # Wide types first, so that each tensor begins at a multiple of its own item size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1][0].itemsize, item[0]))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape) in ordered:
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        size = file.tell() + end
        if end and not sparse and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # else a full disk would kill the process at some later write
        file.truncate(size)
    return TensorFile(path, writable=True)


def write_tensor_file(path: str | os.PathLike, tensors: dict[str, Tensor]) -> None:
    """Writes tensors so that the file is there as a whole or not at all."""
    partial = Path(f"{path}.partial")
    file = create_tensor_file(partial, {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        file[name].copy_(tensor)
    file.flush()
    partial.replace(path)
