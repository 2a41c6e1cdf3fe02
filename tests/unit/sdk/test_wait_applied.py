"""Waiting for pushed rows."""

from __future__ import annotations

from typing import Any

import pytest

import flywheel as fw
from flywheel_protos.feature.v1 import feature_pb2 as pb

SOURCE = "projects/default/sources/rides"


class Feature:
    """Partition 0 is applied up to offset 7."""

    async def GetFreshness(self, _: Any) -> pb.GetFreshnessResponse:
        applied = [pb.AppliedOffset(partition=0, next_offset=7)]
        return pb.GetFreshnessResponse(freshness=[pb.Freshness(name=SOURCE, applied=applied)])


def offset(partition: int, next_offset: int) -> pb.AppliedOffset:
    return pb.AppliedOffset(source=SOURCE, partition=partition, next_offset=next_offset)


async def test_partitions_that_are_not_applied_in_time_are_named() -> None:
    client = fw.Client()
    client.feature = Feature()  # type: ignore[assignment]
    await client.wait_applied([offset(0, 7)])
    with pytest.raises(TimeoutError) as late:
        await client.wait_applied([offset(0, 7), offset(2, 1), offset(1, 3)], within=0.02)
    assert f"Not applied within 0.02 s: {SOURCE}/1, {SOURCE}/2." == str(late.value)
