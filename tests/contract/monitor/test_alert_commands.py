"""The commands that acknowledge, resolve and silence alerts, on a monitor in memory."""

from __future__ import annotations

import asyncio

from typer.testing import CliRunner, Result

from flywheel.cli.main import app
from flywheel_monitor.alerts.alert import AlertState
from flywheel_monitor.alerts.lifecycle import Kind
from flywheel_monitor.models.names import AlertName
from flywheel_monitor.windows.span import Span
from tests.support.builders.monitor import HOUR_US, MODEL, START_US, predictions, version_name
from tests.support.servers.monitor import listening, memory_monitor


async def test_alerts_are_acknowledged_resolved_and_silenced_by_command() -> None:
    monitor = memory_monitor()
    await monitor.predicted(predictions(["a"]))
    async with monitor.store.transaction() as records:
        version = await records.version(version_name())
        assert version is not None
        span = Span(START_US, START_US + HOUR_US)
        await records.open_alert("a1", version, Kind.DATA_DRIFT, span, [], "PSI 0.5")

    async with listening(monitor.store) as address:

        async def run(*arguments: str) -> Result:
            environment = {"FLYWHEEL_MONITOR_ADDRESS": address}
            command = ["--project", "p", "alerts", *arguments]
            return await asyncio.to_thread(CliRunner().invoke, app, command, env=environment)

        async def state() -> AlertState:
            async with monitor.store.reading() as records:
                return (await records.alert(AlertName("p", "a1"))).state

        assert 0 == (await run("ack", "a1")).exit_code
        assert AlertState.ACKNOWLEDGED == await state()
        assert 2 == (await run("resolve", "a1")).exit_code, "a reason is required"
        assert 0 == (await run("resolve", "a1", "--reason", "seen")).exit_code
        assert AlertState.RESOLVED == await state()
        late = await run("ack", "a1")
        assert 1 == late.exit_code and "ALERT_RESOLVED" in late.output
        assert "UNKNOWN_ALERT" in (await run("ack", "a2")).output
        silence = await run("silence", MODEL, "--for", "2h", "--reason", "new data source")
        assert 0 == silence.exit_code, silence.output
        assert "new data source" in (await run("silences")).output
        assert "PSI 0.5" in (await run("list")).output
