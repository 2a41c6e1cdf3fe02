"""A restart of Triton with many models: when those with traffic, and when all are answered again."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import grpc

from flywheel_local.triton import Triton
from flywheel_protos.inference.v1 import inference_pb2, inference_pb2_grpc
from tests.support.eventually import eventually
from tests.support.prediction_load import PredictionLoad, predict_request


@dataclass(frozen=True, slots=True)
class Restart:
    """`busy_seconds` and `all_seconds`: from the first answer of the new Triton until the models with
    traffic, and all models, are loaded. `order`: models by the time at which they were loaded."""

    busy_seconds: float
    all_seconds: float
    order: list[str]


async def restart_triton(address: str, triton: Triton, models: list[str], busy: list[str]) -> Restart:
    """Sends calls to the busy models, kills Triton and starts it again."""

    def request(number: int) -> Any:
        return predict_request(number, busy[number % len(busy)])

    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)

        async def ready() -> set[str]:
            status = await stub.GetServingStatus(inference_pb2.GetServingStatusRequest(), timeout=5)
            return {model.model for model in status.models if model.ready_releases}

        async def ready_models(wanted: int) -> bool:
            return len(await ready()) >= wanted

        await eventually(lambda: ready_models(len(models)), within=240)
        load = PredictionLoad([channel], rate=60.0, make_request=request)
        running = asyncio.create_task(load.run())
        try:
            await asyncio.sleep(1.0)
            await asyncio.to_thread(triton.kill)

            async def none_ready() -> bool:
                return not await ready()

            await eventually(none_ready, within=20)
            await asyncio.to_thread(triton.restart)
            began = time.monotonic()
            order: list[str] = []
            busy_seconds = 0.0
            while len(order) < len(models):
                assert time.monotonic() < began + 240, f"{len(order)} models were loaded"
                await asyncio.sleep(0.02)
                order += sorted((await ready()) - set(order))
                if not busy_seconds and set(busy) <= set(order):
                    busy_seconds = time.monotonic() - began
            all_seconds = time.monotonic() - began
        finally:
            load.stop()
            await running
    return Restart(busy_seconds, all_seconds, order)
