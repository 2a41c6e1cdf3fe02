"""The program and commands of docs/guides/monitoring.md, on a monitor in memory."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from typer.testing import CliRunner

from flywheel.cli.main import app
from flywheel_monitor.alerts.lifecycle import Kind
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


async def test_the_commands_of_the_guide_set_sinks_and_silences() -> None:
    # tests/integration/monitor/test_replay.py runs the command of the first block, which needs a broker.
    replay, block = re.findall(r"^```\n(flywheel .*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    assert replay.startswith("flywheel monitor replay ")
    monitor = memory_monitor()
    sinks = []
    async with listening(monitor.store) as address:
        for line in block.splitlines():
            environment = {"FLYWHEEL_MONITOR_ADDRESS": address}
            done = await asyncio.to_thread(CliRunner().invoke, app, shlex.split(line)[1:], env=environment)
            assert 0 == done.exit_code, done.output
            async with monitor.store.reading() as records:
                sinks.append([(sink.id, sink.format) for sink in await records.sinks("default")])
    both = [("pager", "WEBHOOK"), ("prometheus", "ALERTMANAGER")]
    assert [both[:1], both, both, both, both, both[:1]] == sinks
    async with monitor.store.reading() as records:
        (silence,) = await records.silences("default")
    assert (Kind.DATA_DRIFT, "new data source") == (silence.kind, silence.reason)
    assert timedelta(hours=3) < silence.until - datetime.now(UTC) < timedelta(hours=4)
