"""The processes that share a run, and the lock of the folder in which they work."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

T = TypeVar("T")
# The first process may tokenize or plan for a long time while the others wait.
TIMEOUT = timedelta(days=1)


def process_state() -> PartialState:
    """Return the state of the processes that `accelerate launch` or `torchrun` started, or of this one alone."""
    # Without an accelerator, torchrun's processes are told apart only on request.
    cpu = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.cuda.is_available()
    return PartialState(cpu=cpu, timeout=TIMEOUT)


def common_folder(output_dir: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder in which the processes of a launch work together, None if this process works in memory.

    Args:
        output_dir: The folder that was given.

    Raises:
        ValueError: There are several processes, and none was given.
    """
    if output_dir is None and process_state().num_processes > 1:
        raise ValueError("give output_dir: several processes need a common folder")
    return None if output_dir is None else Path(output_dir)


def count_machines() -> int:
    """Return on how many machines the processes of this launch run, as torchrun and accelerate tell."""
    processes = PartialState().num_processes
    return max(1, processes // int(os.environ.get("LOCAL_WORLD_SIZE", processes)))


def broadcast(compute: Callable[[], T]) -> T:
    """Call a function in the first process and return its result in all processes. All of them wait for it.

    Args:
        compute: The function. It must be possible to pickle its result.

    Returns:
        The result.
    """
    result: list[Any] = [compute() if PartialState().is_main_process else None]
    return broadcast_object_list(result)[0]


@contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Lock a folder inside a `with` block, so that no other build or distillation works in it.

    Every process of a launch must call this, and gets a lock of its own. The operating system releases a lock when its
    process ends, even if it is killed. So a process that outlives the others of its build keeps the folder locked.

    Args:
        folder: The folder; it is created if it does not exist. None: nothing is locked.

    Raises:
        ValueError: Another process is working in the folder.
    """
    if folder is None or (folder.is_dir() and not os.access(folder, os.W_OK)):
        yield  # on a read-only disk nothing can change
        return
    state = PartialState()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"building-{state.process_index}.lock"
    lock = FileLock(path)
    try:
        if state.is_main_process:
            # Remove locks that dead processes have left; a lock that is still held raises Timeout.
            for other in folder.glob("building-*.lock"):
                with FileLock(other).acquire(timeout=0):
                    other.unlink()
            lock.acquire(timeout=0)
        state.wait_for_everyone()
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process is working in {folder}: wait for it, or give another folder") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release(force=True)
