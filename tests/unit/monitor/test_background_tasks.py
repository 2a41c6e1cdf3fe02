"""Background tasks of the monitor after unexpected exceptions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry

from flywheel_common.clock import SystemClock
from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_monitor.config import MonitorSettings
from flywheel_monitor.fakes.lag import MemoryLag
from flywheel_monitor.fakes.references import MemoryReferences
from flywheel_monitor.fakes.replays import NoEventLog, NoScratchStates
from flywheel_monitor.fakes.store import MemoryStore
from flywheel_monitor.server import Ports, wire
from tests.support.background_faults import Faults
from tests.support.builders.monitor import PANE_US


async def for_ever() -> None:
    await asyncio.Event().wait()


async def is_ready() -> bool:
    return True


async def run_in_this_replica(work: Callable[[int], Awaitable[None]]) -> None:
    await work(1)


async def test_each_background_task_works_again_after_an_unexpected_error() -> None:
    ports = Ports(
        store=MemoryStore(MemoryReferences(), PANE_US, SystemClock()),
        lag=MemoryLag(),
        objects=MemoryObjectStore(),
        event_log=NoEventLog(),
        scratch=NoScratchStates(),
        ready=is_ready,
        lease=lambda _: run_in_this_replica,
        consume_events=for_ever,
        relay_events=for_ever,
        send_webhooks=for_ever,
    )
    settings = MonitorSettings(
        listen="127.0.0.1:0",
        metrics_listen="",
        drain_seconds=0.0,
        grace_seconds=0.2,
        watch_poll_seconds=0.05,
        postgres_dsn="postgresql://127.0.0.1:1/none",
        kafka_bootstrap="127.0.0.1:1",
        s3_endpoint="http://127.0.0.1:1",
        s3_access_key="none",
        s3_secret_key="none",
        s3_bucket="none",
        registry_address="127.0.0.1:1",
        feature_address="127.0.0.1:1",
    )
    faults = Faults()
    server = wire(settings, faults.wrap(ports), prometheus=CollectorRegistry())
    faults.watch(server)
    running = asyncio.create_task(server.run_until_signal())
    try:
        await faults.overcome()
    finally:
        server.request_stop()
        await running
