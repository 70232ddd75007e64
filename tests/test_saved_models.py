"""What earlier versions saved loads, and gives the vectors that it gave then."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

import sensedict_hf  # noqa: F401  registers the classes

FOLDER = Path(__file__).parent / "fixtures" / "saved_by_0.1"
TEXTS = ["w1 w2 w3", "w27 w26 w26 w9", "w5"]
# What builds, distils and evaluates needs these; a saved model must do without.
HEAVY = ["accelerate", "datasets", "peft", "pyarrow", "scipy", "sklearn"]


@pytest.fixture(scope="module")
def expected():
    return load_file(FOLDER / "expected.safetensors")


def test_a_student_of_0_1(expected):
    student = AutoModel.from_pretrained(FOLDER / "student")
    torch.testing.assert_close(student.encode(TEXTS), expected["student"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("assignment", ["hard", "soft"])
def test_a_dictionary_of_0_1(assignment, expected):
    senses = AutoModel.from_pretrained(FOLDER / "dictionary")
    found = senses(torch.arange(32)[None], expected["hidden_states"], assignment=assignment)
    torch.testing.assert_close(found.hidden_states, expected[f"dictionary/{assignment}"], rtol=0, atol=1e-6)
    assert torch.equal(found.sense_ids, expected["dictionary/sense_ids"])


@pytest.mark.slow
def test_saved_models_need_no_heavy_package(expected):
    """They load and encode where the packages that building and distilling need are not installed."""
    script = f"""
import importlib.machinery, json, sys
find = importlib.machinery.PathFinder.find_spec
hidden = {HEAVY!r}
def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find(name, path, target)
importlib.machinery.PathFinder.find_spec = classmethod(find_spec)
import sensedict_hf
from transformers import AutoModel
student = AutoModel.from_pretrained({str(FOLDER / "student")!r})
senses = AutoModel.from_pretrained({str(FOLDER / "dictionary")!r})
vectors = student.encode({TEXTS!r}).tolist()
print(json.dumps([vectors, len(senses.senses_of("w5")), [name for name in hidden if name in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    vectors, number, imported = json.loads(done.stdout.splitlines()[-1])
    torch.testing.assert_close(torch.tensor(vectors), expected["student"], rtol=0, atol=1e-6)
    assert number == len(AutoModel.from_pretrained(FOLDER / "dictionary").senses_of("w5")) > 0
    assert imported == []
