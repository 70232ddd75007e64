"""Sixty mutants of saved artefacts; `make fuzz` tries two thousand."""

import pytest
from fuzzing import fuzz, make_folders


@pytest.mark.slow
def test_mutants_are_read_or_refused(tmp_path):
    refused, faults = fuzz(make_folders(tmp_path / "saved"), 60, tmp_path)
    assert not faults and 20 < refused < 60  # some mutations change nothing that is read
