"""Contract tests for what batch views have materialized: memory and PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flywheel_feature.fakes.streams import MemoryMaterialized
from flywheel_feature.store.postgres.materialized import PostgresMaterialized

SECOND = 1_000_000


@pytest.fixture
def materialized(backing: str, request: pytest.FixtureRequest) -> Any:
    if backing == "memory":
        return MemoryMaterialized()
    return PostgresMaterialized(request.getfixturevalue("pool"))


async def test_newest_event_time_of_a_view_version_never_decreases(materialized: Any) -> None:
    assert {} == await materialized.newest("default")
    await materialized.done("default", "facts", 1, 21 * SECOND, 20 * SECOND)
    await materialized.done("default", "facts", 1, 11 * SECOND, 10 * SECOND)
    await materialized.done("default", "others", 1, 6 * SECOND, 5 * SECOND)
    await materialized.done("q", "facts", 1, 99 * SECOND, 99 * SECOND)
    assert {("facts", 1): 20 * SECOND, ("others", 1): 5 * SECOND} == await materialized.newest("default")
    racing = (materialized.done("default", "facts", 1, n * SECOND, n * SECOND) for n in range(10, 40))
    await asyncio.gather(*racing)
    assert 39 * SECOND == (await materialized.newest("default"))["facts", 1]


async def test_seen_files_have_the_last_stamp_per_view_version(materialized: Any) -> None:
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
