"""What a study measured, kept in one JSON file with where each entry comes from.

{"study": "...", "command": "...", "entries": {TITLE: {KEY: ...}}, "provenance": {TITLE: {"commit": ..., "date": ..., ...}}}
"""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "datasets", "scikit-learn")


def provenance(device: str = "cpu", packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Where a measurement comes from: the commit, the date, the device, and the versions that decide it.

    Args:
        device: `cpu` or `cuda`.
        packages: whose versions are kept.
    """
    root = Path(__file__).parent
    asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=10"]
    done = subprocess.run(asked, capture_output=True, text=True)
    name = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
    return {
        "commit": done.stdout.strip() or None,
        "date": date.today().isoformat(),
        "device": name,
        "versions": {"python": platform.python_version(), **{package: _version(package) for package in packages}},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The name of the CPU."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


class Study:
    """The entries of a study. Several processes may add to one file.

    Args:
        path: the JSON file; it is made with the first entry.
        device: what the entries that are added are measured on.
    """

    def __init__(self, path: Path, device: str = "cpu"):
        self.path, self.device = path, device

    def content(self) -> dict[str, Any]:
        """All that the file holds."""
        if not self.path.is_file():
            return {"study": self.path.stem, "entries": {}, "provenance": {}}
        return json.loads(self.path.read_text(encoding="utf-8"))

    def read(self, title: str) -> dict[str, Any]:
        """An entry; empty where there is none."""
        return self.content()["entries"].get(title, {})

    def record(self, title: str, key: str, value: Any) -> None:
        """Adds a value to an entry. The file is written next to the old one and then renamed."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):
            content = self.content()
            content["entries"].setdefault(title, {})[key] = value
            content["provenance"][title] = provenance(self.device)
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            partial.replace(self.path)
