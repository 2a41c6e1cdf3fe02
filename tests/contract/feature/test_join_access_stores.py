"""Contract tests for the access of joins on a cluster, in memory and in PostgreSQL."""

from __future__ import annotations

import pytest

from flywheel_common.granted.access import Access
from flywheel_common.granted.errors import AttemptEnded
from flywheel_common.postgres.pool import Pool
from flywheel_feature.fakes.join_access import MemoryJoinAccess
from flywheel_feature.offline.ports import JoinAccess
from flywheel_feature.store.postgres.join_access import REMEMBERED, PostgresJoinAccess, read_token_key

ONE = Access(("s3://b/in/a.parquet", "s3://b/joins/j"), ("s3://b/joins/j/spine",))
OTHER = Access(("s3://b/in/b.parquet",), ("s3://b/joins/k",))


@pytest.fixture
def stores(backing: str, request: pytest.FixtureRequest) -> tuple[JoinAccess, JoinAccess]:
    """The stores of two processes."""
    if backing == "memory":
        memory = MemoryJoinAccess()
        return memory, memory
    pool = request.getfixturevalue("pool")
    return PostgresJoinAccess(pool), PostgresJoinAccess(pool)


async def test_an_attempt_has_the_access_of_its_join(stores: tuple[JoinAccess, JoinAccess]) -> None:
    writing, reading = stores
    await writing.grant("j", "j-0", ONE)
    await writing.grant("k", "k-0", OTHER)
    for _ in range(2):
        assert (ONE, OTHER) == (await reading.access_of("j-0"), await reading.access_of("k-0"))


async def test_a_new_attempt_replaces_the_one_before(stores: tuple[JoinAccess, JoinAccess]) -> None:
    writing, reading = stores
    await writing.grant("j", "j-0", ONE)
    assert ONE == await reading.access_of("j-0")
    await writing.grant("j", "j-1", OTHER)
    assert OTHER == await reading.access_of("j-1")
    with pytest.raises(AttemptEnded, match="j-0"):
        await reading.access_of("j-0")


async def test_a_repeated_grant_counts_for_all_processes(stores: tuple[JoinAccess, JoinAccess]) -> None:
    writing, reading = stores
    await writing.grant("j", "j-0", ONE)
    assert ONE == await reading.access_of("j-0")
    await writing.grant("j", "j-0", OTHER)
    assert OTHER == await reading.access_of("j-0")


async def test_a_revoked_join_has_no_attempt(stores: tuple[JoinAccess, JoinAccess]) -> None:
    writing, reading = stores
    await writing.grant("j", "j-0", ONE)
    await writing.grant("k", "k-0", OTHER)
    assert ONE == await reading.access_of("j-0")
    for _ in range(2):
        await writing.revoke("j")
        with pytest.raises(AttemptEnded):
            await reading.access_of("j-0")
    assert OTHER == await reading.access_of("k-0")
    with pytest.raises(AttemptEnded):
        await reading.access_of("never")


async def test_more_joins_than_are_remembered_keep_their_access(
    stores: tuple[JoinAccess, JoinAccess],
) -> None:
    writing, reading = stores
    expected = {f"j{i}-0": Access((f"s3://b/in/{i}",), ()) for i in range(REMEMBERED + 3)}
    for attempt, access in expected.items():
        await writing.grant(attempt[:-2], attempt, access)
    for _ in range(2):
        assert expected == {attempt: await reading.access_of(attempt) for attempt in expected}


async def test_processes_on_one_database_share_the_key_of_tokens(pool: Pool) -> None:
    key = await read_token_key(pool)
    assert key == await read_token_key(pool)
    assert len(key) >= 32
