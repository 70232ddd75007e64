"""Commands that die in the middle leave the old result, the new one, or none that loads, and can be repeated."""

import os

import pytest
from crashing import COMMANDS, crash, distill, distill_causal_lm, make_inputs, save_router

SLOW = (distill, distill_causal_lm, save_router)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root, before = tmp_path_factory.mktemp("inputs"), os.getcwd()
    yield make_inputs(root), root
    os.chdir(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    "command",
    [pytest.param(one, marks=pytest.mark.slow if one in SLOW else ()) for one in COMMANDS],
    ids=lambda command: command.__name__,
)
def test_a_command_that_dies(inputs, command, capfd):
    """In the middle, and when it moves its files into place. `make crash` tries every point."""
    texts, root = inputs
    assert crash(command, texts, root, lambda total: [total // 2, total][command in SLOW :]) == []
