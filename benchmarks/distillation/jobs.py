"""Work that is shared by processes, each with an object of its own whose results are files."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from typing import Any

from tqdm.auto import tqdm


class Worker:
    """What a process has."""

    own: object

    @classmethod
    def start(cls, make: Callable[[], object]) -> None:
        threading.Thread(target=cls.end_with_parent, daemon=True).start()
        cls.own = make()

    @staticmethod
    def end_with_parent() -> None:
        """Left alone, a process would go on to write where the next run does."""
        wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    @classmethod
    def call(cls, method: str, *arguments: Any) -> None:
        try:
            getattr(cls.own, method)(*arguments)
        except TimeoutError:  # it comes too late and is left
            pass


def run_jobs(make: Callable[[], object], steps: dict[str, Sequence[tuple[Any, ...]]], jobs: int) -> None:
    """
    Args:
        make: makes the object of a process. steps: by title, methods of it with their arguments; a step begins when the one before is done.

    Raises:
        The first error of a call; the other processes are ended then, as by an interruption.
    """
    os.environ.setdefault(
        "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs))
    )  # of the processes that begin here
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
