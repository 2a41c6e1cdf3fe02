"""One of two gateways, or one of two Tritons, stops under load: every call is answered by the model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from flywheel_common.grpc.channel import channel
from flywheel_local.backends import Backends
from tests.robustness.inference.conftest import Platform
from tests.support.eventually import eventually
from tests.support.prediction_load import PredictionLoad, outcomes, per_second

RATE = 250.0
LEAST_RATE = 200.0

pytestmark = pytest.mark.timeout(300)


@asynccontextmanager
async def answered_by_the_model(client: grpc.aio.Channel) -> AsyncIterator[None]:
    """Sends calls during the block, all of which the model must answer."""
    load = PredictionLoad([client], rate=RATE, deadline=5.0)
    running = asyncio.create_task(load.run())
    try:
        yield
    finally:
        load.stop()
        await running
    assert per_second(load.calls) >= LEAST_RATE
    assert outcomes(load.calls) == {"model": len(load.calls)}


async def test_no_call_fails_when_one_of_two_gateways_gets_sigterm(platform: Platform) -> None:
    gateways = [await platform.gateway() for _ in range(2)]
    addresses = "ipv4:" + ",".join(gateway.address for gateway in gateways)
    async with channel(addresses, client_name="tests") as both, answered_by_the_model(both):
        for gateway in gateways:
            await asyncio.sleep(2.0)
            gateway.terminate()
            await eventually(lambda: not gateway.process.running, within=30)  # noqa: B023
            await asyncio.sleep(0.5)
            gateway.start()
            await gateway.ready()
        await asyncio.sleep(1.0)


@pytest.fixture
def second_triton(tmp_path: Path) -> Iterator[Backends]:
    with Backends({"triton"}, directory=tmp_path / "second", durable=False) as backends:
        yield backends


async def test_no_answer_is_degraded_when_one_of_two_tritons_is_killed(
    platform: Platform, second_triton: Backends
) -> None:
    tritons = [platform.backends.triton, second_triton.triton]
    gateway = await platform.gateway(triton_url=",".join(triton.grpc_url for triton in tritons))
    async with grpc.aio.insecure_channel(gateway.address) as client, answered_by_the_model(client):
        for triton in tritons:
            await asyncio.sleep(2.0)
            await asyncio.to_thread(triton.kill)
            await asyncio.sleep(2.0)
            before = loads(gateway.process.log, triton.grpc_url)
            await asyncio.to_thread(triton.restart)
            # It has its model again before the other one is killed.
            await eventually(
                lambda: loads(gateway.process.log, triton.grpc_url) > before,  # noqa: B023
                within=60,
            )
            await asyncio.sleep(1.0)


def loads(log: Path, address: str) -> int:
    """How often the gateway loaded a model on a Triton."""
    return sum(
        "model loaded" in line and address in line for line in log.read_text(errors="replace").splitlines()
    )
