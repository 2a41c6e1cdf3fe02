"""The p99 of a model's callers while other models of 50 MiB are loaded, against their p99 without a load.

Phases without and with a load alternate in one run, at 100 calls/s from a process of its own. The second row
is the same straight to the same Triton, without the gateway: how much of it Triton and the machine cause.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import grpc
import numpy as np

from bench import measure
from bench.inference.single_gateway import single_gateway
from flywheel_common.signature import FLOAT64, InputSpec, OutputSpec, Signature
from flywheel_inference.models.model_file import ModelFile
from flywheel_inference.models.triton_config import load_request
from flywheel_inference.store.triton.model_server import TritonModelServer
from flywheel_local.layout import LOCAL
from flywheel_protos.inference.v1 import inference_pb2, inference_pb2_grpc
from tests.support.builders.inference import onnx_model
from tests.support.eventually import eventually
from tests.support.peers.inference import RegistryServicer, want_large_model
from tests.support.prediction_load import Call, outcomes, p99_ms, sent_in, separate_load
from tests.support.servers.inference_processes import W

RATE = 100.0
ROUNDS, PHASE_SECONDS = 3, 4.0
SIZE = 50 * 1024 * 1024
NAME = "p99 of 100 calls/s while models of 50 MiB are loaded"
STRAIGHT = f"{NAME}, straight to Triton"
ROW = {"INPUT": np.ones((1, len(W)), np.float32)}


def run(only: str) -> Iterable[measure.Row]:
    if only not in NAME:
        return
    LOCAL.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="loading-", dir=LOCAL))
    try:
        ours, straight = asyncio.run(_p99s(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    yield measure.compared(NAME, "ms", "without a load", [ours], measure.at_most(2.0))
    yield measure.compared(STRAIGHT, "ms", "without a load", [straight], None)


async def _p99s(folder: Path) -> tuple[tuple[float, float], tuple[float, float]]:
    """With and without loads, in milliseconds: of the gateway and of Triton."""
    registry = RegistryServicer()
    registry.chunk_bytes = 1024 * 1024
    registry.want(champion=registry.release(1, W))
    async with single_gateway(folder, registry) as (backends, address):
        ours = await _measured(address, registry)
        return ours, await _straight(backends.triton.grpc_url, registry, folder)


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
    return _both("gateway", await load, quiet, loading)


async def _straight(address: str, registry: RegistryServicer, folder: Path) -> tuple[float, float]:
    """Calls and loads of Triton by this process."""
    models, quiet, loading = TritonModelServer(address), [], []
    calls: list[Call] = []

    async def call() -> None:
        sent = time.monotonic()
        await models.infer("small", ROW, OutputSpec(), 10.0)
        calls.append(Call(sent, time.monotonic() - sent, "model"))

    async def load(name: str, content: bytes) -> None:
        file = ModelFile(folder / name, hashlib.sha256(content).hexdigest())
        await asyncio.to_thread(file.path.write_bytes, content)
        signature = Signature(tuple(InputSpec(f"a__x{i}", FLOAT64) for i in range(len(W))))
        output = np.zeros((1, 1), np.float32)
        config, files = load_request(name, signature, output, file.sha256, backend="python")
        await models.load(name, config, files, file, 60.0)

    async def phases() -> None:
        for number in range(ROUNDS):
            began = time.monotonic()
            await asyncio.sleep(PHASE_SECONDS)
            quiet.append((began, time.monotonic()))
            began = time.monotonic()
            await load(f"large{number}", large[number])
            loading.append((began, time.monotonic()))

    await load("small", onnx_model(W, 0.0))
    large = [file for (_, name), file in registry.artifacts.items() if len(file) > SIZE]
    async with asyncio.TaskGroup() as group:
        running = group.create_task(phases())
        while not running.done():
            group.create_task(call())
            await asyncio.sleep(1.0 / RATE)
    await models.close()
    return _both("Triton", calls, quiet, loading)


Phases = Sequence[tuple[float, float]]


def _both(what: str, calls: Sequence[Call], quiet: Phases, loading: Phases) -> tuple[float, float]:
    without, beside = sent_in(calls, quiet), sent_in(calls, loading)
    took = ", ".join(f"{end - begin:.1f}" for begin, end in loading)
    for when, some in (("without a load", without), (f"beside loads of {took} s", beside)):
        measure.console.print(
            f"  {what} {when}: {len(some)} calls, p99 {p99_ms(some):.1f} ms, {dict(outcomes(some))}"
        )
    return p99_ms(beside), p99_ms(without)
