"""Training of two ranks, killed at ten random steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.interrupted_training import run_with_kills


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_kills_do_not_change_the_parameters(tmp_path: Path) -> None:
    expected, _ = run_with_kills(tmp_path / "whole", 0, seed=0)
    found, starts = run_with_kills(tmp_path / "killed", 10, seed=20261129)
    assert found == expected
    assert len(starts) == 11
    # The kills were spread over the training: later attempts started later.
    assert starts == sorted(starts)
    assert len(set(starts)) >= 5
