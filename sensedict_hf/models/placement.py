"""Moving a loaded model to the devices of a `device_map`, without the tables that stay in host memory.

transformers loads weights directly onto the devices of a `device_map`. For a table of senses that is kept in host
memory because it is too large for a device, this cannot work. Such a model is loaded into host memory, where its files
stay mapped, and moved from there.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel

Device: TypeAlias = str | int | torch.device
DeviceMap: TypeAlias = Device | dict[str, Device]
PLANS = ("auto", "balanced", "balanced_low_0", "sequential")


def requested_devices(device_map: DeviceMap | None) -> DeviceMap | None:
    """Return where to load a model: the given `device_map`, else PyTorch's default device; None for host memory."""
    if device_map is None:
        default = torch.empty(0).device  # of `with torch.device(...)` or `torch.set_default_device(...)`
        return None if default.type in ("cpu", "meta") else default
    return device_map


def place_model(
    model: PreTrainedModel,
    device_map: DeviceMap,
    host_tensors: Sequence[tuple[nn.Module, str]],
    max_memory: dict[int | str, int | str] | None = None,
    offload_folder: str | os.PathLike[str] | None = None,
    offload_buffers: bool = False,
) -> None:
    """Move a model from host memory to devices, in place.

    Args:
        model: The model, all in host memory.
        device_map: As in `from_pretrained`.
        host_tensors: The buffers that stay in host memory, as pairs of a module and a name. They are not counted when
            a plan such as `auto` distributes the model.
        max_memory: As in `from_pretrained`.
        offload_folder: As in `from_pretrained`.
        offload_buffers: As in `from_pretrained`.
    """
    if isinstance(device_map, str) and device_map in PLANS:
        with _emptied(host_tensors):
            device_map = infer_device_map(model, device_map, max_memory)
    elif device_map == "cuda":
        device_map = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"  # as in transformers: each process its own
    devices = set(device_map.values()) if isinstance(device_map, dict) else {device_map}
    if len(devices) == 1 and "disk" not in devices:
        module: nn.Module = model
        module.to(devices.pop())
        return

    from accelerate import dispatch_model  # transformers too needs it for a device_map only

    with _emptied(host_tensors):
        dispatch_model(
            model,
            device_map,
            offload_dir=offload_folder,
            offload_buffers=offload_buffers,
            skip_keys=model._skip_keys_device_placement,
        )


def infer_device_map(
    model: PreTrainedModel, plan: str, max_memory: dict[int | str, int | str] | None
) -> dict[str, Device]:
    """Distribute the modules of a model over all devices, as transformers does.

    Args:
        model: The model.
        plan: `auto`, `balanced`, `balanced_low_0` or `sequential`, as in `from_pretrained`.
        max_memory: As in `from_pretrained`.

    Returns:
        The device of each module, by name.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory, get_max_memory

    whole = list(model._no_split_modules or [])
    if plan == "sequential":
        memory = get_max_memory(max_memory)
    else:
        is_low = plan == "balanced_low_0"
        memory = get_balanced_memory(model, max_memory, no_split_module_classes=whole, low_zero=is_low)
    device_map: dict[str, Device] = infer_auto_device_map(model, memory, no_split_module_classes=whole)
    return device_map


@contextmanager
def _emptied(host_tensors: Sequence[tuple[nn.Module, str]]) -> Iterator[None]:
    """Replace buffers by empty ones inside a `with` block, so that they are neither counted nor moved."""
    kept = [getattr(module, name) for module, name in host_tensors]
    for (module, name), tensor in zip(host_tensors, kept):
        setattr(module, name, tensor[:0])
    try:
        yield
    finally:
        for (module, name), tensor in zip(host_tensors, kept):
            setattr(module, name, tensor)
