"""Contract tests for gateway reports, in memory and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import pytest

from flywheel_common.clock import SystemClock
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import create_pool
from flywheel_registry.fakes.gateways import MemoryGateways
from flywheel_registry.server import MIGRATIONS
from flywheel_registry.serving.gateways import Gateway, ObservedModel
from flywheel_registry.serving.ports import Gateways
from flywheel_registry.store.postgres.gateways import PostgresGateways
from tests.support.eventually import eventually

HOUR = 3600.0
LATE = ObservedModel("projects/p/models/late", 3, ("releases/1", "releases/2"), {"releases/3": "too large"})
OTHER = ObservedModel("projects/p/models/other", 7)
Replicas = tuple[Gateways, Gateways]


@pytest.fixture
async def replicas(dsn: str) -> AsyncIterator[Replicas]:
    """The gateways as two replicas of the registry see them."""
    if not dsn:
        reports: dict[str, Gateway] = {}
        yield MemoryGateways(SystemClock(), reports), MemoryGateways(SystemClock(), reports)
        return
    async with AsyncExitStack() as stack:
        pools = [await stack.enter_async_context(create_pool(dsn)) for _ in range(2)]
        await migrate(pools[0], MIGRATIONS)
        yield PostgresGateways(pools[0]), PostgresGateways(pools[1])


async def test_every_replica_sees_the_newest_report(replicas: Replicas) -> None:
    one, two = replicas
    assert [] == await one.recent(HOUR)
    began = datetime.now(UTC)
    await one.heartbeat("g", [OTHER])
    await two.heartbeat("g", [LATE, OTHER])
    for replica in replicas:
        (seen,) = await replica.recent(HOUR)
        assert ("g", True, [LATE, OTHER]) == (seen.id, seen.live, list(seen.observed))
        # Test and database run on one machine, so their clocks agree.
        assert timedelta(0) <= seen.last_heartbeat - began <= timedelta(seconds=30)
    await one.heartbeat("g", [])
    (seen,) = await two.recent(HOUR)
    assert [] == list(seen.observed)


async def test_a_gateway_is_live_for_a_second_after_its_heartbeat(replicas: Replicas) -> None:
    one, two = replicas
    for name in ("silent", "alive"):
        await one.heartbeat(name, [])

    async def only_one_is_live() -> bool:
        await one.heartbeat("alive", [])
        return [("alive", True), ("silent", False)] == [(g.id, g.live) for g in await two.recent(HOUR)]

    await eventually(only_one_is_live, within=5)


async def test_gateways_are_ordered_by_id_and_paged(replicas: Replicas) -> None:
    one, two = replicas
    for name in ("b", "a", "d", "c", "B"):
        await one.heartbeat(name, [])

    async def ids(after: str, limit: int) -> list[str]:
        return [gateway.id for gateway in await two.recent(HOUR, after, limit)]

    assert ["B", "a", "b", "c", "d"] == await ids("", 9)
    assert ["B", "a"] == await ids("", 2)
    assert ["c", "d"] == await ids("b", 9)
    assert [] == await ids("d", 9)


async def test_a_gateway_without_a_heartbeat_is_not_listed(replicas: Replicas) -> None:
    one, two = replicas
    await one.set_project("g", "p")
    assert [] == await two.recent(HOUR)
    await one.heartbeat("g", [LATE])
    assert ["g"] == [gateway.id for gateway in await two.recent(HOUR)]


async def test_the_watched_project_is_the_one_set_last(replicas: Replicas) -> None:
    one, two = replicas

    async def project() -> str:
        (seen,) = await two.recent(HOUR)
        return seen.project

    await one.heartbeat("g", [LATE])
    assert "" == await project()
    await one.set_project("g", "p")
    assert "p" == await project()
    await one.heartbeat("g", [])
    assert "p" == await project()
    await two.set_project("g", "")
    assert "" == await project()


async def test_a_gateway_that_left_is_forgotten(replicas: Replicas) -> None:
    one, two = replicas
    await one.set_project("g", "p")
    for name in ("g", "other"):
        await one.heartbeat(name, [LATE])
    await two.remove("g")
    await two.remove("never seen")
    assert ["other"] == [gateway.id for gateway in await one.recent(HOUR)]
    await one.heartbeat("g", [])
    assert ["", ""] == [gateway.project for gateway in await one.recent(HOUR)]


async def test_gateways_silent_for_longer_than_asked_are_left_out(replicas: Replicas) -> None:
    one, two = replicas
    await one.heartbeat("g", [])
    assert ["g"] == [gateway.id for gateway in await two.recent(60.0)]

    async def left_out() -> bool:
        return [] == await two.recent(0.05)

    await eventually(left_out, within=5)


async def test_a_heartbeat_calls_the_callbacks_of_the_replica_that_got_it(replicas: Replicas) -> None:
    one, two = replicas
    called: list[str] = []
    stop = one.on_heartbeat(lambda: called.append("first"))
    one.on_heartbeat(lambda: called.append("second"))
    two.on_heartbeat(lambda: called.append("elsewhere"))
    await one.heartbeat("g", [])
    assert ["first", "second"] == sorted(called)
    stop()
    stop()
    await one.heartbeat("g", [])
    assert ["first", "second", "second"] == sorted(called)


async def test_gateways_silent_for_a_day_are_deleted(database: str) -> None:
    async with create_pool(database) as pool:
        await migrate(pool, MIGRATIONS)
        gateways = PostgresGateways(pool)
        for name in ("old", "new"):
            await gateways.heartbeat(name, [])
            await gateways.set_project(name, "p")
        await gateways.set_project("without heartbeat", "p")
        for name in ("old", "old without heartbeat"):
            await gateways.set_project(name, "p")
            await pool.execute(
                "UPDATE gateway_project SET watched_at = now() - interval '25 hours' WHERE gateway = $1", name
            )
        await pool.execute("UPDATE gateway SET last_heartbeat = now() - interval '25 hours' WHERE id = 'old'")
        await pool.execute(
            "UPDATE gateway_project SET watched_at = now() - interval '2 days' WHERE gateway = 'new'"
        )
        await gateways.delete_old()
        found = await pool.fetch("SELECT id FROM gateway ORDER BY id")
        assert ["new"] == [row["id"] for row in found]
        watching = await pool.fetch("SELECT gateway FROM gateway_project ORDER BY gateway")
        assert ["new", "without heartbeat"] == [row["gateway"] for row in watching]


async def test_a_database_crash_loses_no_projects(database: str) -> None:
    async with create_pool(database) as pool:
        await migrate(pool, MIGRATIONS)
        gateways = PostgresGateways(pool)
        await gateways.set_project("g", "p")
        await gateways.heartbeat("g", [LATE])
        unlogged = await pool.fetch(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relpersistence = 'u' "
            "AND relnamespace = 'public'::regnamespace"
        )
        for row in unlogged:  # what recovery does to unlogged tables
            await pool.execute(f'TRUNCATE "{row["relname"]}"')
        assert [] == await gateways.recent(HOUR)
        await gateways.heartbeat("g", [LATE])
        (seen,) = await gateways.recent(HOUR)
        assert "p" == seen.project
