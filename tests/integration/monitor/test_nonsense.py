"""Whatever a request holds, every method refuses what has no sense as documented, and a refusal changes nothing."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from flywheel_protos.monitor.v1 import monitor_pb2
from tests.support.mutated_requests import refusals
from tests.support.row_counts import row_counts


@pytest.mark.timeout(180)
async def test_every_method_refuses_nonsense_as_documented(world: Any) -> None:
    async def held() -> tuple[int, int]:
        """What calls change; events that other tests left in the topics are counted meanwhile."""
        counts = await row_counts(world.dsn)
        return counts["alert"], counts["idempotent_request"]

    async with grpc.aio.insecure_channel(world.monitor.address) as channel:
        service = monitor_pb2.DESCRIPTOR.services_by_name["MonitorService"]
        seen = await refusals(channel, service, held)
    assert seen["INVALID_ARGUMENT"] > len(service.methods)
