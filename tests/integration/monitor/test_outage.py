"""While PostgreSQL is down the monitor says so in time and loses nothing; when it is back, so is the monitor."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import grpc
import pytest

from flywheel_common.grpc_channel import from_rpc_error
from flywheel_common.testing.eventually import eventually
from flywheel_local.postgres import Postgres
from flywheel_protos.monitor.v1 import monitor_pb2 as pb


@pytest.mark.timeout(120)
async def test_calls_fail_within_their_deadline_and_events_count_afterwards(
    world: Any, postgres: Postgres
) -> None:
    world.register()
    await world.predict(**world.rows(200))
    await world.processed(200)
    postgres.kill()
    began = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as down:
        await world.monitor.stub.GetIngestStatus(pb.GetIngestStatusRequest(parent="projects/none"), timeout=5)
    refusal = from_rpc_error(down.value)
    assert ("UNAVAILABLE", "POSTGRES_UNAVAILABLE") == (refusal.code.name, refusal.reason)
    assert time.monotonic() - began < 5
    await world.predict(**world.rows(200, seed=1))
    await asyncio.to_thread(postgres.restart)

    async def back() -> bool:
        with suppress(grpc.RpcError):
            await world.status()
            return True
        return False

    await eventually(back, within=30)
    await world.processed(400)
    assert world.monitor.process.returncode is None, "it went on by itself"
