"""Processes of one launch, forked: those that `torchrun` starts import everything again, which takes ten seconds."""

import multiprocessing
import os
import socket
import sys
from dataclasses import dataclass

import pytest
from accelerate import PartialState

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@dataclass
class Ended:
    """A process that has ended: its exit code, and what it has printed."""

    code: int
    output: str
    errors: str


def launch(function, folder, processes=2):
    """Call a function in some processes that share a run.

    Args:
        function: It gets the number of its process; its result is the exit code.
        folder: For what the processes print.
        processes: How many.

    Returns:
        The processes, :class:`Ended`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}

    def run(number):
        os.environ.update(place, MASTER_PORT=port, RANK=str(number), LOCAL_RANK=str(number))
        PartialState._reset_state()
        with open(folder / f"{number}.out", "w") as sys.stdout, open(folder / f"{number}.err", "w") as sys.stderr:
            raise SystemExit(function(number))

    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=run, args=(number,)) for number in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
        process.kill()  # nothing happens if it has ended
        process.join()
    return [
        Ended(process.exitcode, *((folder / f"{number}.{kind}").read_text() for kind in ("out", "err")))
        for number, process in enumerate(started)
    ]
