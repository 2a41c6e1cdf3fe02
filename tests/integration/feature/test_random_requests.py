"""Every method refuses invalid requests with documented errors, and a refusal changes nothing."""

from __future__ import annotations

import grpc
import pytest

from flywheel_common.grpc.server import Server
from flywheel_protos.feature.v1 import feature_pb2
from tests.support.mutated_requests import refusals
from tests.support.row_counts import row_counts


@pytest.mark.timeout(180)
async def test_every_method_refuses_random_requests_as_documented(server: Server, database: str) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        service = feature_pb2.DESCRIPTOR.services_by_name["FeatureService"]
        seen = await refusals(channel, service, lambda: row_counts(database))
    assert seen["INVALID_ARGUMENT"] > len(service.methods)
    assert seen["NOT_FOUND"]
