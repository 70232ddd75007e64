"""Results of benchmarks and their provenance."""

import ast
import json
from multiprocessing import get_context

import pytest

from benchmarks.studies import RESULTS, ROOT, Study, results_file, shortest_times

# All modules that are run by themselves.
MODULES = sorted(
    path.stem
    for path in (ROOT / "benchmarks").iterdir()
    if (path.is_dir() and (path / "__main__.py").is_file())
    or (path.suffix == ".py" and path.stem not in ("__init__", "stored_states", "studies"))
)


def add(path, number):
    Study(path).record(f"model-{number % 3}", {f"task-{number}": {"score": number}})


def test_processes_add_to_one_file(tmp_path):
    path = tmp_path / "results" / "study.json"
    with get_context("fork").Pool(4) as pool:
        pool.starmap(add, [(path, number) for number in range(12)])
    study = Study(path)
    assert study.read("model-1") == {f"task-{number}": {"score": number} for number in (1, 4, 7, 10)}
    assert study.read("another") == {}
    content = json.loads(path.read_text())
    assert content["study"] == "study" and content["provenance"].keys() == content["entries"].keys()
    assert content["provenance"]["model-0"]["versions"]["torch"] is not None


def test_runs_take_turns_and_the_shortest_time_counts():
    order, ticks = [], iter([0, 5, 10, 11, 20, 22, 30, 37])  # seconds before and after each run
    runs = {title: lambda title=title: order.append(title) for title in ("slow", "fast")}
    assert shortest_times(runs, 2, clock=lambda: next(ticks)) == {"slow": 2, "fast": 1}
    assert order == ["slow", "fast", "slow", "fast"]


def test_trials_are_not_mixed_with_recorded_results(tmp_path):
    assert results_file(None, "sizes") == RESULTS / "sizes.json"
    assert results_file(None, "sizes", recorded=False, folder=tmp_path) == tmp_path / "sizes.json"
    assert results_file(tmp_path / "own.json", "sizes") == tmp_path / "own.json"


@pytest.mark.parametrize("module", MODULES)
def test_every_benchmark_names_its_file_of_results(module):
    """`python -m benchmarks.NAME` is in the docstring and in the table of the README."""
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    path = ROOT / "benchmarks" / module
    source = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8")))
    assert f"    python -m benchmarks.{module}" in docstring
    assert f"| `{module}` |" in page


def test_recorded_results_say_where_they_come_from():
    assert len(list(RESULTS.glob("*.json"))) >= 3
    for path in RESULTS.glob("*.json"):
        content = json.loads(path.read_text())
        assert content["provenance"].keys() == content["entries"].keys() != set()
        for origin in content["provenance"].values():
            assert origin["commit"] and origin["date"] and origin["device"] and origin["versions"]["torch"]
