"""A million points are logged over an outage of the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.tracked_points import check_no_point_is_lost, log_over_an_outage

POINTS = 1_000_000


@pytest.mark.timeout(600)
async def test_no_point_of_a_million_is_lost_over_an_outage(
    trainer_settings: Any, start_trainer: Any, tmp_path: Path
) -> None:
    trainer = await start_trainer(trainer_settings)
    run = await log_over_an_outage(trainer, tmp_path, POINTS, away_seconds=30.0, restart=trainer.start)
    assert 0 == run.dropped_points
    await check_no_point_is_lost(trainer, run, POINTS)
