"""One law for how far batch views were materialized, in memory, in PostgreSQL and, where it shows, through gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

import flywheel as fw
from flywheel_feature.encoding.wire_columns import micros
from flywheel_feature.fakes.streams import MemoryMaterialized
from flywheel_feature.store.postgres.materialized import PostgresMaterialized
from flywheel_protos.feature.v1 import feature_pb2 as pb
from tests.contract.feature.over_grpc import no_rpc

SECOND = 1_000_000


class GrpcMaterialized:
    """Reads by GetFreshness, of the views that are applied; `done` is told by jobs and pushes, so it goes to the store behind."""

    def __init__(self, stub: Any, behind: PostgresMaterialized) -> None:
        self._stub = stub
        self.done = behind.done

    async def newest(self, project: str) -> dict[tuple[str, int], int]:
        answer = await self._stub.GetFreshness(pb.GetFreshnessRequest(parent=f"projects/{project}"))
        found = {}
        for fresh in answer.freshness:
            _, _, collection, view, *rest = fresh.name.split("/")
            if collection == "views" and fresh.HasField("watermark"):
                found[view, int(rest[1]) if rest else 1] = micros(fresh.watermark)
        return found

    async def seen(self, project: str, view: str, version: int) -> Mapping[str, str]:
        raise NotImplementedError

    async def mark_seen(self, project: str, view: str, version: int, uri: str, stamp: str) -> None:
        raise NotImplementedError

    async def forget_files(self, project: str, view: str, version: int) -> None:
        raise NotImplementedError


@pytest.fixture
def materialized(backing: str, request: pytest.FixtureRequest) -> Any:
    if backing == "memory":
        return MemoryMaterialized()
    stored = PostgresMaterialized(request.getfixturevalue("pool"))
    if backing == "postgres":
        return stored
    return GrpcMaterialized(request.getfixturevalue("applied").feature, stored)


@pytest.fixture
async def applied(client: fw.Client) -> fw.Client:
    """A service that knows the views `facts` and `others` in version 1."""
    place = fw.Entity("place", {"code": fw.STRING})
    heights = fw.ParquetSource(
        "heights", {"code": fw.STRING, "at": fw.TIMESTAMP, "height": fw.FLOAT64}, timestamp="at", uri="s3://nowhere/heights/"
    )  # fmt: skip
    views = [fw.BatchView(name, place, heights, {"height": fw.FLOAT64}) for name in ("facts", "others")]
    await client.apply(fw.compile_definitions(views, "default"))
    return client


async def test_the_newest_event_time_of_a_view_version_never_goes_back(materialized: Any) -> None:
    assert {} == await materialized.newest("default")
    await materialized.done("default", "facts", 1, 21 * SECOND, 20 * SECOND)
    await materialized.done("default", "facts", 1, 11 * SECOND, 10 * SECOND)
    await materialized.done("default", "others", 1, 6 * SECOND, 5 * SECOND)
    await materialized.done("q", "facts", 1, 99 * SECOND, 99 * SECOND)
    assert {("facts", 1): 20 * SECOND, ("others", 1): 5 * SECOND} == await materialized.newest("default")
    racing = (materialized.done("default", "facts", 1, n * SECOND, n * SECOND) for n in range(10, 40))
    await asyncio.gather(*racing)
    assert 39 * SECOND == (await materialized.newest("default"))["facts", 1]


@no_rpc("the files that a view has seen")
async def test_files_seen_are_those_of_a_view_version_with_the_last_stamp(materialized: Any) -> None:
    assert {} == await materialized.seen("p", "facts", 1)
    for uri, stamp in (("s3://b/1", "x"), ("s3://b/2", "y"), ("s3://b/1", "z")):
        await materialized.mark_seen("p", "facts", 1, uri, stamp)
    await materialized.mark_seen("p", "facts", 2, "s3://b/1", "other version")
    await materialized.mark_seen("q", "facts", 1, "s3://b/1", "other project")
    assert {"s3://b/1": "z", "s3://b/2": "y"} == await materialized.seen("p", "facts", 1)
    await materialized.forget_files("p", "facts", 1)
    assert {} == await materialized.seen("p", "facts", 1)
    assert {"s3://b/1": "other version"} == await materialized.seen("p", "facts", 2)
    assert {"s3://b/1": "other project"} == await materialized.seen("q", "facts", 1)
