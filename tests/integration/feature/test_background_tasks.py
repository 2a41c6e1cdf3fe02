"""Background tasks of the feature service and of the stream worker after unexpected exceptions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

import flywheel as fw
from flywheel.tables import to_dict
from flywheel_common.process.worker import Worker
from flywheel_feature.config import FeatureSettings, MaterializeSettings
from flywheel_feature.ports import open_ports, open_worker_ports
from flywheel_feature.server import wire, wire_worker
from tests.support.background_faults import Faults
from tests.support.servers.feature import events_archived

T0 = datetime(2013, 1, 1, tzinfo=UTC)
SCHEMA = {"carrier": fw.STRING, "at": fw.TIMESTAMP, "delay": fw.FLOAT64}
carrier = fw.Entity("carrier", {"carrier": fw.STRING})
landings = fw.StreamSource("landings", SCHEMA, timestamp="at")
delays = fw.StreamView(
    "delays", carrier, landings, [fw.count("7d", name="n"), fw.total("delay", "7d", name="sum")], tile="1h"
)


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[None]:
    task = asyncio.create_task(worker.run_until_signal())
    try:
        yield
    finally:
        worker.request_stop()
        await task


@pytest.fixture
def process_environment(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("process_environment")
async def test_each_task_of_the_service_works_again_after_an_unexpected_error() -> None:
    settings, faults = FeatureSettings(), Faults()
    async with AsyncExitStack() as stack:
        server = wire(settings, faults.wrap(await open_ports(settings, stack)))
        faults.watch(server)
        async with running(server):
            await faults.overcome()


@pytest.mark.timeout(180)
async def test_each_task_of_the_worker_works_again_and_every_event_counts_once(client: fw.Client) -> None:
    await client.apply(fw.compile_definitions([delays, fw.FeatureSet("all", ["delays:*"])], "default"))
    settings, faults = MaterializeSettings(), Faults()
    pushed = 0

    async def push() -> None:
        nonlocal pushed
        rows = {"carrier": ["AA"], "at": [T0 + timedelta(seconds=pushed)], "delay": [1.0]}
        await client.push("landings", rows, SCHEMA, ids=[f"event-{pushed}"])
        pushed += 1

    async with AsyncExitStack() as stack:
        worker = wire_worker(settings, faults.wrap(await open_worker_ports(settings, stack)))
        faults.watch(worker)
        async with running(worker):
            await faults.overcome(push, within=60)
            await events_archived(client, pushed)
            answer = await client.online_features("all", {"carrier": ["AA"]}, as_of=T0 + timedelta(days=1))
            assert to_dict(answer.features) == {"delays__n": [pushed], "delays__sum": [float(pushed)]}
