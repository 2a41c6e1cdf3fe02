"""Malformed and random requests: documented errors only, and no effect of a refused request."""

from __future__ import annotations

import pytest

from flywheel_protos.inference.v1 import inference_pb2
from tests.support.mutated_requests import refusals
from tests.support.servers.inference import Deployment


@pytest.mark.timeout(180)
async def test_every_method_refuses_mutated_requests_as_documented(deployment: Deployment) -> None:
    gateway = await deployment.gateway()

    async def rows_looked_up() -> int:
        return sum(deployment.features.batches)

    service = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
    seen = await refusals(gateway.channel, service, rows_looked_up)
    assert seen["INVALID_ARGUMENT"] > len(service.methods)
