"""The results of a benchmark, kept in one JSON file with the origin of each entry.

    {"study": ..., "command": ..., "entries": {TITLE: {KEY: VALUE}}, "provenance": {TITLE: {"commit": ..., ...}}}

The files are in `benchmarks/results/`, one for each study.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "transformers", "datasets", "scikit-learn")
Title = TypeVar("Title", bound=Hashable)


def study_parser(study: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of `python -m benchmarks.STUDY`, with the option `--results`.

    Args:
        study: Name of the module, and of its file of results.
        description: The docstring of the module.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{study}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = f"JSON file to add the results to; default: benchmarks/results/{study.replace('.', '_')}.json"
    parser.add_argument("--results", type=Path, help=f"{text}; for trials and other teachers a file of the run's own")
    return parser


def results_file(given: Path | None, study: str, *, recorded: bool = True, folder: Path = Path("runs")) -> Path:
    """Return the file of results of a run.

    Args:
        given: The value of `--results`.
        study: Name of the study.
        recorded: Whether the run has the settings of the recorded results. Other runs, such as trials, must not be
            mixed with these.
        folder: Folder for the results of other runs.
    """
    return given or (RESULTS if recorded else folder) / f"{study}.json"


def write_json(path: Path, content: object) -> None:
    """Write a file next to the old one and rename it, so that an interruption leaves one of them whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def shortest_times(
    runs: Mapping[Title, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[Title, float]:
    """Return the seconds that each run takes, by its title: the shortest time of all rounds.

    The runs take turns, so that a busy moment of the machine does not hit one of them alone.

    Args:
        runs: What is timed, by title.
        rounds: How often each one runs.
        clock: What tells the seconds, such as `time.process_time` for CPU time.
    """
    shortest = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for title, run in runs.items():
            begin = clock()
            run()
            shortest[title] = min(shortest[title], clock() - begin)
    return shortest


def provenance(device: str = "cpu", packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Return the origin of a measurement: commit, date, device, and versions of Python and packages.

    Args:
        device: `cpu` or `cuda`.
        packages: The packages whose versions are kept.
    """
    return {
        "commit": _commit(),
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else _processor(),
        "versions": {"python": platform.python_version(), **{package: _version(package) for package in packages}},
    }


def _commit() -> str | None:
    """Return the commit of the code, with `-dirty` if it was changed. Results that were added do not count."""

    def git(*command: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True).stdout.strip()

    commit = git("describe", "--always", "--abbrev=10")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)benchmarks/results")
    return f"{commit}{'-dirty' * bool(changed)}" if commit else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the name of the CPU and the number of its cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


class Study:
    """The entries of a study. Several processes may add to one file.

    Args:
        path: The JSON file. The first entry creates it.
        device: The device of the measurements that are added, `cpu` or `cuda`.
        command: The command that makes the entries, with placeholders for paths. A new file keeps it.
    """

    def __init__(self, path: Path, device: str = "cpu", command: str | None = None):
        self.path, self.device, self.command = path, device, command

    def content(self) -> dict[str, Any]:
        """Return everything in the file."""
        if self.path.is_file():
            return json.loads(self.path.read_text(encoding="utf-8"))
        return {"study": self.path.stem, "command": self.command, "entries": {}, "provenance": {}}

    def read(self, title: str) -> dict[str, Any]:
        """Return an entry; empty if there is none."""
        return self.content()["entries"].get(title, {})

    def record(self, title: str, values: Mapping[str, Any]) -> None:
        """Add values to an entry. Its provenance becomes that of the new values.

        Args:
            title: Title of the entry.
            values: Values by their keys. They replace older ones with the same keys.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):
            content = self.content()
            content["entries"].setdefault(title, {}).update(values)
            content["provenance"][title] = provenance(self.device)
            write_json(self.path, content)
