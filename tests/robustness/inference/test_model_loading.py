"""Loading a model of 50 MiB while another one answers 100 calls/s; the p99 with and without it are printed.

Phases without and with a load alternate in one run. The bound is wide, because the load generator, Triton and
the gateway share the cores of the machine; the target is twice the p99 without a load.
"""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from flywheel_protos.inference.v1 import inference_pb2, inference_pb2_grpc
from tests.robustness.inference.conftest import Platform
from tests.support.eventually import eventually
from tests.support.peers.inference import RegistryServicer, registry_server, want_large_model
from tests.support.prediction_load import outcomes, p99_ms, sent_in, separate_load
from tests.support.servers.inference_processes import W

RATE = 100.0
ROUNDS, PHASE_SECONDS = 3, 4.0
SIZE = 50 * 1024 * 1024
WIDE_BOUND = 10.0

pytestmark = pytest.mark.timeout(300)


async def test_callers_of_a_model_do_not_wait_for_the_load_of_another(platform: Platform) -> None:
    registry = RegistryServicer()
    registry.chunk_bytes = 1024 * 1024
    registry.want(champion=registry.release(1, W))
    server = registry_server(registry)
    await server.start()
    try:
        gateway = await platform.gateway(registry_address=server.address)
        async with grpc.aio.insecure_channel(gateway.address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)

            async def loaded(model: str) -> bool:
                status = await stub.GetServingStatus(inference_pb2.GetServingStatusRequest(), timeout=5)
                return any(one.model == model and one.ready_releases for one in status.models)

            seconds = ROUNDS * 2 * PHASE_SECONDS + 20.0
            load = asyncio.create_task(separate_load(gateway.address, rate=RATE, seconds=seconds))
            await asyncio.sleep(2.0)  # its interpreter starts
            quiet, loading, took = [], [], []
            for number in range(ROUNDS):
                began = time.monotonic()
                await asyncio.sleep(PHASE_SECONDS)
                quiet.append((began, time.monotonic()))
                model = want_large_model(registry, number, W, SIZE)
                began = time.monotonic()
                await eventually(lambda model=model: loaded(model), within=60)  # type: ignore[misc]
                loading.append((began, time.monotonic()))
                took.append(time.monotonic() - began)
            calls = await load
    finally:
        await server.stop()
    without, beside = sent_in(calls, quiet), sent_in(calls, loading)
    ratio = p99_ms(beside) / p99_ms(without)
    print(
        f"p99 without a load {p99_ms(without):.1f} ms ({len(without)} calls), beside loads of "
        f"{', '.join(f'{one:.1f}' for one in took)} s {p99_ms(beside):.1f} ms ({len(beside)} calls): "
        f"{ratio:.1f} times"
    )
    assert outcomes(beside) == {"model": len(beside)}
    assert ratio <= WIDE_BOUND
