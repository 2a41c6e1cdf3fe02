"""A million points are logged before, during and after an outage of the trainer.

FLYWHEEL_OUTAGE_SECONDS=600 makes it one of ten minutes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.tracked_points import check_no_point_is_lost, log_over_an_outage

POINTS = 1_000_000
AWAY_SECONDS = float(os.environ.get("FLYWHEEL_OUTAGE_SECONDS", "30"))


@pytest.mark.timeout(600 + 2 * AWAY_SECONDS)
async def test_no_point_of_a_million_is_lost_over_an_outage(
    trainer_settings: Any, start_trainer: Any, tmp_path: Path
) -> None:
    trainer = await start_trainer(trainer_settings)
    run = await log_over_an_outage(
        trainer, tmp_path, POINTS, away_seconds=AWAY_SECONDS, restart=trainer.start
    )
    assert 0 == run.dropped_points
    await check_no_point_is_lost(trainer, run, POINTS)
