"""The p99 of a model's callers while other models of 50 MiB are loaded, against their p99 without a load.

Phases without and with a load alternate in one run, at 100 calls/s from a process of its own.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import grpc

from bench import measure
from bench.inference.single_gateway import single_gateway
from flywheel_local.layout import LOCAL
from flywheel_protos.inference.v1 import inference_pb2, inference_pb2_grpc
from tests.support.eventually import eventually
from tests.support.peers.inference import RegistryServicer, want_large_model
from tests.support.prediction_load import outcomes, p99_ms, sent_in, separate_load
from tests.support.servers.inference_processes import W

RATE = 100.0
ROUNDS, PHASE_SECONDS = 3, 4.0
SIZE = 50 * 1024 * 1024
NAME = "p99 of 100 calls/s while models of 50 MiB are loaded"


def run(only: str) -> Iterable[measure.Row]:
    if only not in NAME:
        return
    LOCAL.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="loading-", dir=LOCAL))
    try:
        pair = asyncio.run(_p99s(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    yield measure.compared(NAME, "ms", "without a load", [pair], measure.at_most(2.0))


async def _p99s(folder: Path) -> tuple[float, float]:
    """With and without loads, in milliseconds."""
    registry = RegistryServicer()
    registry.chunk_bytes = 1024 * 1024
    registry.want(champion=registry.release(1, W))
    async with single_gateway(folder, registry) as (_, address):
        return await _measured(address, registry)


async def _measured(address: str, registry: RegistryServicer) -> tuple[float, float]:
    seconds = ROUNDS * 2 * PHASE_SECONDS + 20.0
    load = asyncio.create_task(separate_load(address, rate=RATE, seconds=seconds))
    await asyncio.sleep(3.0)  # its interpreter starts
    quiet, loading = [], []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)

        async def loaded(model: str) -> bool:
            status = await stub.GetServingStatus(inference_pb2.GetServingStatusRequest(), timeout=5)
            return any(one.model == model and one.ready_releases for one in status.models)

        for number in range(ROUNDS):
            began = time.monotonic()
            await asyncio.sleep(PHASE_SECONDS)
            quiet.append((began, time.monotonic()))
            model = want_large_model(registry, number, W, SIZE)
            began = time.monotonic()
            await eventually(lambda model=model: loaded(model), within=60)  # type: ignore[misc]
            loading.append((began, time.monotonic()))
    calls = await load
    without, beside = sent_in(calls, quiet), sent_in(calls, loading)
    took = ", ".join(f"{end - begin:.1f}" for begin, end in loading)
    for what, some in (("without a load", without), (f"beside loads of {took} s", beside)):
        measure.console.print(
            f"  {what}: {len(some)} calls, p99 {p99_ms(some):.1f} ms, {dict(outcomes(some))}"
        )
    return p99_ms(beside), p99_ms(without)
