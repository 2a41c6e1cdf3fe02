"""Replays of a range of the topics, on real backends: equal to what is stored, or naming what differs."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
import grpc
import numpy as np
import pytest
from typer.testing import CliRunner

from flywheel.cli.main import app
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.kafka import topics
from flywheel_common.value import from_micros
from flywheel_protos.monitor.v1 import monitor_pb2 as pb
from flywheel_protos.monitor.v1 import replay_pb2
from tests.support.builders.monitor import HOUR_US, MINUTE_US, START_US
from tests.support.eventually import eventually
from tests.support.servers.monitor_process import MonitoredModel

WINDOW_US = 6 * HOUR_US
WINDOWS = 6
ROWS = 300


def request(world: MonitoredModel, windows: int = WINDOWS, **fields: Any) -> replay_pb2.ReplayWindowsRequest:
    wanted = replay_pb2.ReplayWindowsRequest(model=fields.get("model", world.model))
    wanted.start_time.FromMicroseconds(START_US)
    wanted.end_time.FromMicroseconds(START_US + windows * WINDOW_US)
    return wanted


async def replayed(world: MonitoredModel, **fields: Any) -> replay_pb2.ReplayWindowsResponse:
    messages = [m async for m in world.monitor.stub.ReplayWindows(request(world, **fields))]
    assert messages[-1].finished and not any(m.finished for m in messages[:-1])
    return messages[-1]


async def served(world: MonitoredModel) -> int:
    """Windows with drift, a shadow, segments, labels and corrected labels, repeats and records of another
    model; judged with labels but for the newest. Returns the number of minutes of a partition that have
    predictions."""
    world.register(metrics={"auc": 0.8})
    world.register(2)
    policy = pb.MonitorPolicy(model=world.model, min_predictions=200, min_labels=100)
    policy.window.FromMicroseconds(WINDOW_US)
    policy.lateness.FromMicroseconds(HOUR_US)
    await world.monitor.stub.SetMonitorPolicy(pb.SetMonitorPolicyRequest(policy=policy))
    rng = np.random.default_rng(5)
    minutes: set[tuple[int, int]] = set()
    for k in range(WINDOWS):
        rows = world.rows(ROWS, seed=k, start_us=START_US + k * WINDOW_US, hours=6)
        rows["delays"] = rows["delays"] + (1.0 if k >= 3 else 0.0)
        segments = ["JFK" if i % 3 else "LGA" for i in range(ROWS)]
        await world.predict(**rows, segments=segments)
        await world.predict(**rows, segments=segments, chunk=70)  # every row is a duplicate
        await world.predict(**rows, release=2, version=2, role=3, rollout=f"{world.model}/rollouts/1")
        labels = rng.integers(0, 2, ROWS).astype(float)
        at = rows["times"] + HOUR_US // 2
        await world.label(rows["ids"], labels, at)
        corrected = rows["ids"][:40]
        await world.label(corrected, 1 - labels[:40], at[:40] + 1, outcome_ids=[f"c-{i}" for i in corrected])
        await world.label(rows["ids"][:20], np.ones(20), at[:20], name="click")
        partitions = [topics.partition_for(prediction) for prediction in rows["ids"]]
        minutes.update(zip(partitions, rows["times"] // MINUTE_US, strict=True))
    return len(minutes)


async def judged(world: MonitoredModel) -> None:
    async def found() -> bool:
        status = await world.status()
        # The lag alone may be an old value. Repeated rows and corrected labels are duplicates.
        counts = status.predictions, status.outcomes, status.duplicates
        assert (WINDOWS * ROWS, WINDOWS * (ROWS + 20), WINDOWS * (ROWS + 40)) == counts
        request = pb.ListDriftReportsRequest(name=world.version_name())
        reports = (await world.monitor.stub.ListDriftReports(request)).reports
        return len(reports) >= WINDOWS - 1 and sum(r.labelled > 0 for r in reports) >= WINDOWS - 1

    await eventually(found, within=60, every=0.2)


async def test_a_replay_equals_what_is_stored(world: MonitoredModel) -> None:
    minutes = await served(world)
    await judged(world)
    found = await replayed(world)
    assert [] == [f"{d.start_time.ToJsonString()} {d.what}" for d in found.differences]
    assert not found.HasField("complete_from")
    # At least a pane per version, partition and minute with a prediction, and all but the newest window.
    assert found.panes > 2 * minutes and found.reports >= WINDOWS - 1
    assert found.records == found.records_total > 0
    part = await replayed(world, windows=2)
    assert (2, []) == (part.reports, list(part.differences)) and part.panes < found.panes


async def test_the_command_prints_the_result_and_ends_with_its_status(world: MonitoredModel) -> None:
    await served(world)
    await judged(world)

    async def run(*arguments: str) -> tuple[int, str]:
        begin = from_micros(START_US)
        ends = [f"{begin + timedelta(hours=h):%Y-%m-%dT%H:%M:%S}" for h in (0, 12)]
        command = [
            "--project",
            world.project,
            "monitor",
            "replay",
            "late",
            "--from",
            ends[0],
            "--to",
            ends[1],
        ]
        environment = {"FLYWHEEL_MONITOR_ADDRESS": world.monitor.address}
        done = await asyncio.to_thread(CliRunner().invoke, app, command, env=environment)
        return done.exit_code, done.output

    status, text = await run()
    assert 0 == status and "are bit-identical" in text, text
    connection = await asyncpg.connect(world.dsn)
    try:
        await connection.execute("DELETE FROM pane WHERE start_us = $1 AND width_us = 3600000000", START_US)
    finally:
        await connection.close()
    status, text = await run()
    assert 1 == status and "0 stored" in text and world.version_name() in text, text


async def test_a_replay_names_the_pane_and_the_report_that_differ(world: MonitoredModel) -> None:
    await served(world)
    await judged(world)
    connection = await asyncpg.connect(world.dsn)
    third = START_US + 2 * WINDOW_US
    try:
        changed = await connection.fetchrow(
            """UPDATE pane SET predictions = predictions + 5 WHERE ctid IN (
                SELECT p.ctid FROM pane p JOIN variant t ON t.id = p.variant_id AND t.role = 1
                    JOIN model_version v ON v.id = t.model_version_id
                WHERE v.name = $2 AND start_us >= $1 AND segment = '' AND width_us = 60000000
                ORDER BY start_us LIMIT 1)
            RETURNING start_us""",
            third,
            world.version_name(),
        )
        await connection.execute(
            "DELETE FROM pane WHERE start_us = $1 AND segment = 'JFK' AND width_us = 3600000000", third
        )
        await connection.execute(
            """UPDATE window_report SET report = jsonb_set(report, '{score,mean}', '0.75')
            WHERE start_us = $1""",
            START_US + WINDOW_US,
        )
    finally:
        await connection.close()
    found = await replayed(world)
    lines = [(d.start_time.ToMicroseconds(), d.end_time.ToMicroseconds(), d.what) for d in found.differences]
    minute = [what for start, end, what in lines if (start, end - start) == (changed["start_us"], 60_000_000)]
    assert minute and any("stored" in what for what in minute), (dict(changed), lines[:20])
    hours = [what for start, end, what in lines if end - start == HOUR_US]
    assert hours and all("segment 'JFK'" in what and "0 stored" in what for what in hours)
    reports = [(start, what) for start, _, what in lines if what.startswith("report")]
    assert [(START_US + WINDOW_US, "report: score")] == reports
    assert len(lines) == len(minute) + len(hours) + len(reports)


async def test_one_replay_runs_at_a_time_and_leaves_nothing(world: MonitoredModel) -> None:
    await served(world)
    await judged(world)
    first = world.monitor.stub.ReplayWindows(request(world))
    await first.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replayed(world)
    assert "REPLAY_RUNNING" == from_rpc_error(caught.value).reason
    first.cancel()

    async def again() -> bool:
        try:
            return not (await replayed(world)).differences
        except grpc.aio.AioRpcError:
            return False  # the cancelled one still deletes its state

    await eventually(again, within=20, every=0.5)
    connection = await asyncpg.connect(world.dsn)
    try:
        assert 0 == await connection.fetchval(
            "SELECT count(*) FROM pg_namespace WHERE nspname = 'flywheel_monitor_replay'"
        )
    finally:
        await connection.close()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replayed(world, model=f"projects/{world.project}/models/none")
    assert "UNKNOWN_MODEL" == from_rpc_error(caught.value).reason
