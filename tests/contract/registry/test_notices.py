"""One law for notices of changed routing, in memory and in PostgreSQL. Gateways hear of them by WatchServing: test_serving_at_the_edge.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import urlsplit

import asyncpg
import pytest

from flywheel_common.errors import Unavailable
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import create_pool
from flywheel_registry.convert_events import to_event
from flywheel_registry.memory import MemoryStore
from flywheel_registry.memory_serving import MemoryNotices
from flywheel_registry.ports import Store
from flywheel_registry.resources import Model, ModelVersion, Release
from flywheel_registry.server import MIGRATIONS
from flywheel_registry.serving import Routing
from flywheel_registry.store.notices import PostgresNotices
from flywheel_registry.store.records import PostgresStore
from flywheel_registry.watching import Notices
from tests.support.fault_proxy import FaultProxy

AT = datetime(2026, 1, 1, tzinfo=UTC)
LATE, OTHER = "projects/p/models/late", "projects/q/models/other"
SHORT, LONG = 0.1, 10.0


@dataclass
class Told:
    store: Store
    listener: Callable[[], Notices]
    """A new listener, as every replica has one."""


@pytest.fixture
async def told(dsn: str) -> AsyncIterator[Told]:
    async with _told(dsn) as made:
        yield made


@asynccontextmanager
async def _told(dsn: str) -> AsyncIterator[Told]:
    """With two models that have a release each."""
    async with AsyncExitStack() as stack:
        if dsn:
            pool = await stack.enter_async_context(create_pool(dsn))
            await migrate(pool, MIGRATIONS)

            def listener() -> Notices:
                notices = PostgresNotices(pool)
                stack.push_async_callback(notices.close)
                return notices

            made = Told(PostgresStore(pool, to_event), listener)
        else:
            memory = MemoryStore()
            made = Told(memory, lambda: MemoryNotices(memory))
        async with made.store.transaction() as records:
            for model in (LATE, OTHER):
                await records.add_model(Model(model, created_at=AT))
                version = await records.add_version(ModelVersion(model, registered_at=AT))
                await records.add_release(Release(model, version.number, created_at=AT))
        yield made


async def route(store: Store, model: str, generation: int) -> None:
    async with store.transaction() as records:
        await records.set_routing(model, Routing(generation, champion=1))


async def test_a_listener_begins_with_everything_to_be_read(told: Told) -> None:
    await route(told.store, LATE, 1)
    listener = told.listener()
    assert await listener.next(LONG) is None
    assert set() == await listener.next(SHORT)
    assert {LATE: 1} == await listener.generations()


async def test_a_commit_wakes_every_listener_with_the_models_that_it_changed(told: Told) -> None:
    listeners = [told.listener(), told.listener()]
    for listener in listeners:
        assert await listener.next(LONG) is None
    waiting = [asyncio.create_task(listener.next(LONG)) for listener in listeners]
    await route(told.store, LATE, 1)
    assert [{LATE}, {LATE}] == await asyncio.gather(*waiting)
    assert set() == await listeners[0].next(SHORT)
    assert {LATE: 1} == await listeners[1].generations()


async def test_what_changes_while_nobody_waits_is_told_at_the_next_call(told: Told) -> None:
    listener = told.listener()
    assert await listener.next(LONG) is None
    for generation in (1, 2):
        await route(told.store, LATE, generation)
    await route(told.store, OTHER, 1)
    heard: set[str] = set()
    while heard != {LATE, OTHER}:
        news = await listener.next(LONG)
        assert news, "a notice was lost"
        heard |= news
    assert {LATE: 2, OTHER: 1} == await listener.generations()


async def test_what_was_never_committed_is_told_to_nobody(told: Told) -> None:
    listener = told.listener()
    assert await listener.next(LONG) is None
    with pytest.raises(RuntimeError, match="dies here"):
        async with told.store.transaction() as records:
            await records.set_routing(LATE, Routing(1, champion=1))
            raise RuntimeError("dies here")
    async with told.store.transaction() as records:
        await records.change_model(replace(Model(LATE), owner="ann"))
    assert set() == await listener.next(SHORT)
    assert {} == await listener.generations()


async def test_a_listener_whose_connection_broke_says_that_notices_may_be_lost(database: str) -> None:
    async with _told(database) as told:
        listener = told.listener()
        assert await listener.next(LONG) is None
        waiting = asyncio.create_task(listener.next(LONG))
        await asyncio.sleep(SHORT)
        connection = await asyncpg.connect(database)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await connection.close()
        # It must not wait to the end of its patience for a connection that is gone.
        assert set() == await asyncio.wait_for(waiting, LONG / 2)
        assert await listener.next(LONG) is None
        await route(told.store, LATE, 1)
        assert {LATE} == await listener.next(LONG)


async def test_a_database_that_is_away_is_unavailable_and_heard_again_when_it_is_back(database: str) -> None:
    address = urlsplit(database)
    assert address.hostname and address.port
    async with (
        FaultProxy(address.hostname, address.port) as proxy,
        _told(database.replace(f":{address.port}/", f":{proxy.port}/")) as told,
    ):
        listener = told.listener()
        assert await listener.next(LONG) is None
        proxy.cut()
        while (news := await _news(listener)) == set():
            pass
        assert "POSTGRES_UNAVAILABLE" == news
        proxy.heal()
        while (news := await _news(listener)) == "POSTGRES_UNAVAILABLE":
            await asyncio.sleep(SHORT)
        assert news is None


async def _news(listener: Notices) -> set[str] | str | None:
    """What is heard, or the reason why nothing is."""
    try:
        return await listener.next(SHORT)
    except Unavailable as error:
        return error.reason
