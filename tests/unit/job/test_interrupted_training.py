"""A job that is killed continues where its last checkpoint was."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.interrupted_training import run_with_kills


@pytest.mark.timeout(200)
def test_a_killed_job_ends_with_the_parameters_of_an_uninterrupted_one(tmp_path: Path) -> None:
    expected, starts = run_with_kills(tmp_path / "whole", 0, seed=0)
    assert starts == [0]
    found, starts = run_with_kills(tmp_path / "killed", 2, seed=1)
    assert found == expected
    assert starts[0] == 0
    assert starts[1] > 0
    assert len(starts) == 3
