"""The program of docs/guides/monitoring.md, on a monitor in memory."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from flywheel_monitor.models.feature_rule import Direction, FeatureRule
from tests.support.servers.monitor import listening, memory_monitor

GUIDE = (Path(__file__).resolve().parents[3] / "docs" / "guides" / "monitoring.md").read_text()
UNTIL_US = int(datetime(2027, 1, 15, tzinfo=UTC).timestamp()) * 1_000_000


async def test_the_program_of_the_guide_sets_its_rules() -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    monitor = memory_monitor()
    async with listening(monitor.store) as address:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", program],
            env={**os.environ, "FLYWHEEL_MONITOR_ADDRESS": address},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (0, "") == (done.returncode, done.stderr)
    async with monitor.store.reading() as records:
        policy = await records.policy("projects/default/models/late")
    assert policy is not None
    assert 1 == policy.seasonal_weeks
    assert (
        FeatureRule("flight__distance", 0.05, 0.1),
        FeatureRule("weather__wind", direction=Direction.UP),
        FeatureRule("airport__queue", silenced_until_us=UNTIL_US),
        FeatureRule("flight__number", silenced=True),
    ) == policy.feature_rules
