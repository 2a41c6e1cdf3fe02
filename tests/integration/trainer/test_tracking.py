"""Runs tracked by the SDK on a trainer process with PostgreSQL and S3."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

import flywheel as fw
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy
from tests.support.tracked_points import check_no_point_is_lost, log_over_an_outage

POINTS = 30_000


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


async def test_no_point_is_lost_when_the_trainer_is_killed(
    trainer_settings: Any, start_trainer: Any, tmp_path: Path
) -> None:
    trainer = await start_trainer(trainer_settings)
    run = await log_over_an_outage(trainer, tmp_path, POINTS, away_seconds=1.0, restart=trainer.start)
    await check_no_point_is_lost(trainer, run, POINTS)
    async with fw.Client(trainer=trainer.address) as client:
        found = await client.get_run(run.name)
        assert pb.RUN_STATE_SUCCEEDED == found.state
        assert {"system/cpu_percent", "m0", "m9"} <= set(found.metrics)


async def test_a_run_is_tracked_lost_resumed_and_read_back(
    trainer_settings: Any, start_trainer: Any, stack: AsyncExitStack, tmp_path: Path
) -> None:
    trainer = await start_trainer(trainer_settings)
    host, port = trainer.address.split(":")
    proxy = await stack.enter_async_context(FaultProxy(host, int(port)))
    options: Any = {"address": proxy.address, "spool": tmp_path / "spool", "system_metrics": False}
    run = await asyncio.to_thread(fw.run, "late", params={"lr": 0.1}, lease_seconds=1.0, **options)
    content = b"0123456789" * 500_000
    (tmp_path / "data.bin").write_bytes(content)
    run.log_artifact(tmp_path / "data.bin", "deep/data.bin")
    run.log({"loss": 0.5}, step=1)
    assert await asyncio.to_thread(run.flush)
    async with fw.Client(trainer=trainer.address) as client:
        path = await client.download_run_artifact(run.name, "deep/data.bin", tmp_path / "back.bin")
        assert content == path.read_bytes()

        async def is_in(state: int) -> bool:
            return bool((await client.get_run(run.name)).state == state)

        proxy.cut()
        await eventually(lambda: is_in(pb.RUN_STATE_LOST), within=20)
        run.log({"loss": 0.25}, step=2)
        proxy.heal()
        await eventually(lambda: is_in(pb.RUN_STATE_RUNNING), within=20)
        await asyncio.to_thread(run.finish, "FAILED", "preempted")
        again = await asyncio.to_thread(fw.run, "late", resume=run.id, rewind_to=1, **options)
        again.log({"loss": 0.125})
        await asyncio.to_thread(again.finish)
        found = await client.best_run("late", "loss", mode="min")
        assert (run.name, pb.RUN_STATE_SUCCEEDED, 2) == (found.name, found.state, found.generation)
        (curve,) = await client.run_curves(run.name)
        assert ([1, 2], [0.5, 0.125]) == (curve.steps, curve.values)
