"""Work that processes share. Each process has an object of its own, whose results are files."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from typing import Any

from tqdm.auto import tqdm


class Worker:
    """The state of a process.

    Attributes:
        own: The object whose methods are called.
    """

    own: object

    @classmethod
    def start(cls, make: Callable[[], object]) -> None:
        """Make the object, in a new process."""
        threading.Thread(target=cls.end_with_parent, daemon=True).start()
        cls.own = make()

    @staticmethod
    def end_with_parent() -> None:
        """End the process when its parent ends. Otherwise it would write to the files of the next run."""
        wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    @classmethod
    def call(cls, method: str, *arguments: Any) -> None:
        """Call a method of the object. A TimeoutError means that the time is over, and is no error."""
        try:
            getattr(cls.own, method)(*arguments)
        except TimeoutError:
            pass


def run_jobs(make: Callable[[], object], steps: dict[str, Sequence[tuple[Any, ...]]], jobs: int) -> None:
    """Call methods in several processes.

    Args:
        make: Makes the object of a process.
        steps: By title, the calls of a step: the name of a method and its arguments. A step begins when the one before
            it is done.
        jobs: Number of processes.

    Raises:
        Exception: The first error of a call. The other processes are ended, also on an interruption.
    """
    # The processes share the cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), Worker.start, (make,)) as pool:
        try:
            for title, calls in steps.items():
                futures = [pool.submit(Worker.call, *call) for call in calls]
                for future in tqdm(as_completed(futures), title, len(futures)):
                    future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
