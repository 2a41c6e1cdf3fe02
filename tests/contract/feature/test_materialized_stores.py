"""Contract tests for what batch views have materialized: memory and PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flywheel_feature.fakes.streams import MemoryMaterialized
from flywheel_feature.store.postgres.materialized import PostgresMaterialized
from flywheel_feature.tables.ports import SeenFile

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


async def test_seen_files_are_remembered_per_view_version(materialized: Any) -> None:
    assert {} == await materialized.seen("p", "facts", 1)
    for uri, seen in (
        ("s3://b/1", SeenFile("x", 7, 5)),
        ("s3://b/2", SeenFile("y", 9, 8)),
        ("s3://b/1", SeenFile("z")),
    ):
        await materialized.mark_seen("p", "facts", 1, uri, seen)
    await materialized.mark_seen("p", "facts", 2, "s3://b/1", SeenFile("other version"))
    await materialized.mark_seen("q", "facts", 1, "s3://b/1", SeenFile("other project"))
    remembered = {"s3://b/1": SeenFile("z"), "s3://b/2": SeenFile("y", 9, 8)}
    assert remembered == await materialized.seen("p", "facts", 1)
    await materialized.forget_files("p", "facts", 1)
    assert {} == await materialized.seen("p", "facts", 1)
    assert {"s3://b/1": SeenFile("other version")} == await materialized.seen("p", "facts", 2)
    assert {"s3://b/1": SeenFile("other project")} == await materialized.seen("q", "facts", 1)


async def test_the_earliest_due_time_of_a_file_is_kept_with_its_stamp(materialized: Any) -> None:
    await materialized.mark_seen("p", "facts", 1, "read", SeenFile("x"))
    for uri in ("read", "unread"):
        for due, read_at in ((20, 3), (10, 4), (30, 5)):
            await materialized.mark_due("p", "facts", 1, uri, SeenFile("ignored", due, read_at))
    assert {"read": SeenFile("x", 10, 3), "unread": SeenFile("", 10, 3)} == await materialized.seen(
        "p", "facts", 1
    )


async def test_view_versions_with_due_rows_are_found_from_their_time_on(materialized: Any) -> None:
    await materialized.mark_due("p", "facts", 1, "a", SeenFile("", 20, 1))
    await materialized.mark_due("p", "facts", 1, "b", SeenFile("", 10, 1))
    await materialized.mark_due("p", "facts", 2, "a", SeenFile("", 30, 1))
    await materialized.mark_seen("q", "facts", 1, "a", SeenFile("x"))
    assert {} == await materialized.due(9)
    assert {("p", "facts", 1): 10} == await materialized.due(10) == await materialized.due(29)
    assert {("p", "facts", 1): 10, ("p", "facts", 2): 30} == await materialized.due(30)
    await materialized.mark_seen("p", "facts", 1, "b", SeenFile("y"))
    assert {("p", "facts", 1): 20} == await materialized.due(20)
