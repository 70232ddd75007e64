"""What earlier versions saved loads, and gives the vectors that it gave then."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

import sensedict_hf  # noqa: F401  registers the classes

FOLDER = Path(__file__).parent / "fixtures" / "saved_by_0.1"
TEXTS = ["w1 w2 w3", "w27 w26 w26 w9", "w5"]


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
