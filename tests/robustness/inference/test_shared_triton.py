"""Two gateways on one Triton: rollbacks from a full canary unload no model that the other one still uses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from flywheel_protos.inference.v1 import inference_pb2, inference_pb2_grpc
from tests.robustness.inference.conftest import Platform
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy
from tests.support.peers.inference import RegistryServicer, registry_server
from tests.support.prediction_load import PredictionLoad, outcomes
from tests.support.servers.inference_processes import GatewayProcess, W

ROLLBACKS = 50
PAUSED = {10, 25, 40}
"""Rollbacks that one gateway hears of 5 seconds late."""
PAUSE_SECONDS = 5.0
RATE = 100.0

pytestmark = pytest.mark.timeout(900)


class Pair:
    """Two gateways that follow one registry; the second one's connection can be stalled."""

    def __init__(self, registry: RegistryServicer, proxy: FaultProxy) -> None:
        self.registry = registry
        self.proxy = proxy
        self.gateways: list[GatewayProcess] = []
        self.channels: list[grpc.aio.Channel] = []

    async def generations(self) -> list[int]:
        found = []
        for channel in self.channels:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            status = await stub.GetServingStatus(inference_pb2.GetServingStatusRequest(), timeout=5)
            found.append(status.models[0].generation)
        return found

    async def applied(self, generation: int, gateways: int = 2) -> None:
        async def all_applied() -> bool:
            return (await self.generations())[:gateways] == [generation] * gateways

        await eventually(all_applied, within=60)


@pytest.fixture
async def pair(platform: Platform) -> AsyncIterator[Pair]:
    registry = RegistryServicer()
    registry.want(champion=registry.release(1, W))
    server = registry_server(registry)
    async with AsyncExitStack() as stack:
        await server.start()
        stack.push_async_callback(server.stop)
        proxy = await stack.enter_async_context(FaultProxy("127.0.0.1", server.port))
        found = Pair(registry, proxy)
        for address in (server.address, proxy.address):
            gateway = await platform.gateway(registry_address=address, unload_seconds=0.0, hold_seconds=6)
            found.gateways.append(gateway)
            found.channels.append(await stack.enter_async_context(grpc.aio.insecure_channel(gateway.address)))
        yield found


async def test_no_answer_is_degraded_in_50_rollbacks_from_a_full_canary(pair: Pair) -> None:
    registry = pair.registry
    champion = registry.release(1, W)
    load = PredictionLoad(pair.channels, rate=RATE, deadline=5.0)
    running = asyncio.create_task(load.run())
    try:
        for number in range(ROLLBACKS):
            challenger: Any = registry.release(2 + number, W, 0.001 * number)
            canary = {"champion": champion, "challenger": challenger, "rollout": f"projects/t/r{number}"}
            await pair.applied(registry.want(**canary, challenger_percent=100.0))
            if number in PAUSED:
                pair.proxy.stall()
                generation = registry.want(champion=champion)
                await pair.applied(generation, gateways=1)
                await asyncio.sleep(PAUSE_SECONDS)
                # The second gateway still answers with the challenger.
                assert (await pair.generations())[1] == generation - 1
                pair.proxy.heal()
            else:
                generation = registry.want(champion=champion)
            await pair.applied(generation)
    finally:
        load.stop()
        await running
    assert outcomes(load.calls) == {"model": len(load.calls)}
    assert len(load.calls) > 50 * ROLLBACKS
