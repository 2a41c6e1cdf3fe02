"""Whatever a request holds, every method refuses what has no sense as documented, and a refusal changes nothing."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from flywheel_protos.inference.v1 import inference_pb2
from tests.support.mutated_requests import refusals


@pytest.mark.timeout(180)
async def test_every_method_refuses_nonsense_as_documented(world: Any) -> None:
    gateway = await world.gateway()

    async def looked_up() -> int:
        return sum(world.features.batches)

    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.server.port}") as channel:
        service = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
        seen = await refusals(channel, service, looked_up)
    assert seen["INVALID_ARGUMENT"] > len(service.methods)
