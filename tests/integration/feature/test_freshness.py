"""Events that wait for a stream worker are visible: in the metric, in GetFreshness and in the CLI."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import REGISTRY

import flywheel as fw
from flywheel_common.grpc.server import Server
from flywheel_feature.ingest import freshness_metrics
from flywheel_protos.feature.v1 import feature_pb2 as pb
from tests.support.eventually import eventually
from tests.support.servers.feature import PARENT

SCHEMA = {"rider": fw.STRING, "at": fw.TIMESTAMP}
VIEW, SOURCE = f"{PARENT}/views/recent", f"{PARENT}/sources/rides"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freshness_metrics, "PUBLISH_SECONDS", 0.2)


def waiting() -> float | None:
    return REGISTRY.get_sample_value("flywheel_feature_freshness_waiting_seconds", {"view": VIEW})


async def fresh(client: fw.Client, name: str) -> pb.Freshness:
    answer = await client.feature.GetFreshness(pb.GetFreshnessRequest(parent=PARENT))
    return next(f for f in answer.freshness if f.name == name)


async def shown(server: Server) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", "from flywheel.cli.main import main; main()", "features", "freshness"),
        env={
            **os.environ,
            "FLYWHEEL_FEATURE_ADDRESS": f"127.0.0.1:{server.port}",
            "FORCE_COLOR": "1",
            "COLUMNS": "200",
        },
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


async def push(client: fw.Client, number: int) -> pb.PushFeaturesResponse:
    rows: Any = {"rider": ["r"], "at": [datetime.now(UTC)]}
    return await client.push("rides", rows, SCHEMA, ids=[f"e{number}"])


@pytest.mark.timeout(120)
async def test_waiting_events_are_visible_while_no_worker_runs(
    client: fw.Client, server: Server, workers: Any
) -> None:
    rides = fw.StreamSource("rides", SCHEMA, timestamp="at")
    rider = fw.Entity("rider", {"rider": fw.STRING})
    view = fw.StreamView(
        "recent", rider, rides, [fw.count("1h", name="n")], freshness_sla=timedelta(seconds=3)
    )
    await client.apply(fw.compile_definitions([view], "default"))
    await eventually(lambda: waiting() == 0.0, within=20)

    # No worker has ever run, as when it cannot start.
    before = datetime.now(UTC)
    pushed = await push(client, 1)
    await eventually(lambda: (waiting() or 0) > 1, within=20)
    assert (waiting() or 0) < (datetime.now(UTC) - before).total_seconds() + 1
    worker = workers.start()
    await client.wait_applied(pushed.offsets)
    await eventually(lambda: waiting() == 0.0, within=20)
    assert not (await fresh(client, VIEW)).HasField("waiting_since")

    await asyncio.to_thread(workers.kill, worker)
    before = datetime.now(UTC)
    await push(client, 2)
    await push(client, 3)
    await eventually(lambda: (waiting() or 0) > 4, within=20)
    for name in (VIEW, SOURCE):
        found = await fresh(client, name)
        assert 2 == found.lag_events
        since = found.waiting_since.ToDatetime(UTC)
        assert before - timedelta(seconds=1) < since < before + timedelta(seconds=3)
    (line,) = [line for line in (await shown(server)).splitlines() if VIEW in line]
    assert "\x1b[31m" in line, line

    workers.start()
    await eventually(lambda: waiting() == 0.0, within=30)
    (line,) = [line for line in (await shown(server)).splitlines() if VIEW in line]
    assert "\x1b[31m" not in line, line
