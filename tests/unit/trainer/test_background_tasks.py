"""Background tasks of the trainer after unexpected exceptions."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from prometheus_client import CollectorRegistry

from flywheel_common.clock import SystemClock
from flywheel_common.ids import SequentialIds
from flywheel_trainer.server import wire
from tests.support.background_faults import Faults
from tests.support.servers.trainer import memory_ports, memory_settings


async def test_each_background_task_works_again_after_an_unexpected_error() -> None:
    faults = Faults()
    async with AsyncExitStack() as stack:
        server = await wire(
            memory_settings(job_poll_seconds=0.05, pipeline_poll_seconds=0.05, lease_check_seconds=0.05),
            stack,
            faults.wrap(memory_ports()),
            clock=SystemClock(),
            ids=SequentialIds("n"),
            prometheus=CollectorRegistry(),
        )
        faults.watch(server)
        running = asyncio.create_task(server.run_until_signal())
        try:
            await faults.overcome()
        finally:
            server.request_stop()
            await running
