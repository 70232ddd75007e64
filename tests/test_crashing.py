"""Commands that die in the middle leave the old result, the new one, or none that loads, and can be repeated."""

import os
import shutil
import subprocess

import pytest
from crashing import (
    COMMANDS,
    build,
    contents,
    convert,
    crash,
    distill,
    distill_causal_lm,
    distill_without_layers,
    encode_vectors,
    index_build,
    make_inputs,
    run_until,
    save_router,
)
from launching import needs_fork

from sensedict_hf.building import planning

SLOW = (distill, distill_without_layers, distill_causal_lm, save_router)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root, before = tmp_path_factory.mktemp("inputs"), os.getcwd()
    yield make_inputs(root), root
    os.chdir(before)


@needs_fork
@pytest.mark.parametrize(
    "command",
    [pytest.param(one, marks=pytest.mark.slow if one in SLOW else ()) for one in COMMANDS],
    ids=lambda command: command.__name__,
)
def test_a_command_that_dies(inputs, command, capfd):
    """In the middle, and when it moves its files into place. `make crash` tries every point."""
    texts, root = inputs
    assert crash(command, texts, root, lambda total: [total // 2, total][command in SLOW :]) == []


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize(
    "command", [build, convert, encode_vectors, index_build], ids=lambda command: command.__name__
)
def test_a_full_disk(inputs, small_disk, command, monkeypatch):
    """It is an error, never a signal that kills the process, and the same command goes on when there is room."""
    texts, root = inputs
    out = small_disk / "out"
    run_until(command, texts, out)
    expected = contents(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    shutil.rmtree(out)
    room = type("Usage", (), {"free": 10**12})
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda folder: room)  # a disk that fills up later
    for free in (0, size // 2, size * 9 // 10):
        (small_disk / "filler").write_bytes(bytes(max(0, 2**20 - 2**14 - free)))
        assert run_until(command, texts, out, may_end=[1]) is None or contents(out) == expected
        (small_disk / "filler").unlink()
    if contents(out) != expected:
        run_until(command, texts, out)
    assert contents(out) == expected
