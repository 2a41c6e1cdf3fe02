"""Outages of the monitor's dependencies: calls fail before their deadline, no event is lost, and it
recovers."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit

import grpc
import pytest

from flywheel_common.grpc.channel import from_rpc_error
from flywheel_local.postgres import Postgres
from flywheel_protos.monitor.v1 import monitor_pb2 as pb
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy
from tests.support.servers.monitor_process import MonitoredModel


@pytest.mark.timeout(120)
async def test_without_postgres_calls_fail_in_time_and_events_wait(
    world: MonitoredModel, postgres: Postgres
) -> None:
    world.register()
    await world.predict(**world.rows(200))
    await world.processed(200)
    request = pb.GetIngestStatusRequest(parent="projects/none")

    async def refusal() -> tuple[str, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.monitor.stub.GetIngestStatus(request, timeout=5)
        error = from_rpc_error(caught.value)
        return error.code.name, error.reason

    def unready() -> bool:
        assert world.monitor.channel is not None
        return world.monitor.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE

    postgres.kill()
    assert ("UNAVAILABLE", "POSTGRES_UNAVAILABLE") == await refusal()
    await eventually(unready)
    assert ("UNAVAILABLE", "POSTGRES_UNAVAILABLE") == await refusal()
    await world.predict(**world.rows(200, seed=1))
    await asyncio.to_thread(postgres.restart)

    async def back() -> bool:
        with suppress(grpc.RpcError):
            await world.status()
            return True
        return False

    await eventually(back, within=30)
    await world.processed(400)
    assert world.monitor.process.returncode is None, "the process kept running"


@pytest.mark.timeout(120)
async def test_hung_peers_and_s3_delay_no_call_and_lose_no_event(world: MonitoredModel) -> None:
    """No method calls them; background tasks do. The process starts while they hang."""
    peers_port = int(world.peers.address.rpartition(":")[2])
    s3_port = urlsplit(world.s3.endpoint).port
    async with FaultProxy("127.0.0.1", peers_port) as peers, FaultProxy("127.0.0.1", s3_port) as s3:
        await world.monitor.kill()
        changed = {
            "S3_ENDPOINT": f"http://{s3.address}",
            "REGISTRY_ADDRESS": peers.address,
            "FEATURE_ADDRESS": peers.address,
        }
        world.monitor.environment.update({f"FLYWHEEL_MONITOR_{k}": v for k, v in changed.items()})
        peers.stall()
        s3.stall()
        await world.monitor.start()
        world.register()
        await world.predict(**world.rows(200))
        archived = pb.GetPredictionArchiveRequest(model=world.model)
        stub, parent = world.monitor.stub, f"projects/{world.project}"
        for _ in range(3):
            status = await stub.GetIngestStatus(pb.GetIngestStatusRequest(parent=parent), timeout=2)
            assert status.predictions == 0
            assert (await stub.GetPredictionArchive(archived, timeout=2)).rows == 0
            assert not (await stub.ListAlerts(pb.ListAlertsRequest(parent=parent), timeout=2)).alerts
        peers.heal()
        await world.processed(200)
        assert (await stub.GetPredictionArchive(archived, timeout=2)).rows == 0
        s3.heal()

        async def kept() -> bool:
            return bool((await stub.GetPredictionArchive(archived, timeout=5)).rows == 200)

        await eventually(kept, within=60)
        await world.monitor.stop()
