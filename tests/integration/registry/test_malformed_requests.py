"""Random and malformed requests are rejected as documented and change nothing."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from flywheel_protos.registry.v1 import registry_pb2
from tests.support.mutated_requests import refusals
from tests.support.row_counts import row_counts


@pytest.mark.timeout(180)
async def test_every_method_rejects_malformed_requests_as_documented(registry: Any, database: str) -> None:
    async with grpc.aio.insecure_channel(registry.address) as channel:
        service = registry_pb2.DESCRIPTOR.services_by_name["RegistryService"]
        seen = await refusals(channel, service, lambda: row_counts(database))
    assert seen["INVALID_ARGUMENT"] > len(service.methods)
    assert seen["NOT_FOUND"]
