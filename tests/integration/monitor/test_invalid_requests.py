"""Every method rejects invalid requests with a documented error, and a rejected request changes nothing."""

from __future__ import annotations

import grpc
import pytest

from flywheel_protos.monitor.v1 import monitor_pb2
from tests.support.mutated_requests import refusals
from tests.support.row_counts import row_counts
from tests.support.servers.monitor_process import MonitoredModel


@pytest.mark.timeout(180)
async def test_invalid_requests_are_rejected_as_documented(world: MonitoredModel) -> None:
    async def held() -> tuple[int, int]:
        """What calls change. Counts of events are left out: other tests leave events in the topics."""
        counts = await row_counts(world.dsn)
        return counts["alert"], counts["idempotent_request"]

    async with grpc.aio.insecure_channel(world.monitor.address) as channel:
        service = monitor_pb2.DESCRIPTOR.services_by_name["MonitorService"]
        seen = await refusals(channel, service, held)
    assert seen["INVALID_ARGUMENT"] > len(service.methods)
