"""Results of benchmarks are kept with where they come from."""

import json
from multiprocessing import get_context

from benchmarks.studies import RESULTS, Study


def add(path, number):
    Study(path).record(f"model-{number % 3}", f"task-{number}", {"score": number})


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


def test_recorded_results_say_where_they_come_from():
    assert len(list(RESULTS.glob("*.json"))) >= 3
    for path in RESULTS.glob("*.json"):
        content = json.loads(path.read_text())
        assert content["provenance"].keys() == content["entries"].keys() != set()
        for origin in content["provenance"].values():
            assert origin["commit"] and origin["date"] and origin["device"] and origin["versions"]["torch"]
