"""Contract tests for notifications of routing changes, in memory and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import asyncpg
import pytest

from flywheel_common.errors import Unavailable
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import create_pool
from flywheel_common.postgres.transactions import Store
from flywheel_registry.api.convert_events import to_event
from flywheel_registry.fakes.routing_notifications import MemoryRoutingNotifications
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.models.model import Model
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.server import MIGRATIONS
from flywheel_registry.serving.ports import RoutingNotifications
from flywheel_registry.serving.routing import Routing
from flywheel_registry.store.postgres.routing_notifications import PostgresRoutingNotifications
from flywheel_registry.store.postgres.store import PostgresStore
from tests.support.builders.registry import MODEL, OTHER_MODEL, add_model
from tests.support.fault_proxy import FaultProxy

SHORT, LONG = 0.1, 10.0


@dataclass
class Listening:
    store: Store[RolloutRecords]
    listener: Callable[[], RoutingNotifications]
    """Returns a new listener; every replica has one."""


@pytest.fixture
async def listening(dsn: str) -> AsyncIterator[Listening]:
    async with _listening(dsn) as made:
        yield made


@asynccontextmanager
async def _listening(dsn: str) -> AsyncIterator[Listening]:
    """A store with two models that have a release each; in memory without a DSN."""
    async with AsyncExitStack() as stack:
        if dsn:
            pool = await stack.enter_async_context(create_pool(dsn))
            await migrate(pool, MIGRATIONS)

            def listener() -> RoutingNotifications:
                notifications = PostgresRoutingNotifications(pool)
                stack.push_async_callback(notifications.close)
                return notifications

            made = Listening(PostgresStore(pool, to_event), listener)
        else:
            memory = MemoryStore()
            made = Listening(memory, lambda: MemoryRoutingNotifications(memory))
        for model in (MODEL, OTHER_MODEL):
            await add_model(made.store, model)
        yield made


async def route(store: Store[RolloutRecords], model: str, generation: int) -> None:
    async with store.transaction() as records:
        await records.set_routing(model, Routing(generation, champion=1))


async def test_a_new_listener_must_read_all_generations(listening: Listening) -> None:
    await route(listening.store, MODEL, 1)
    listener = listening.listener()
    assert await listener.next(LONG) is None
    assert set() == await listener.next(SHORT)
    assert {MODEL: 1} == await listener.generations()


async def test_a_commit_notifies_every_listener_of_changed_models(listening: Listening) -> None:
    listeners = [listening.listener(), listening.listener()]
    for listener in listeners:
        assert await listener.next(LONG) is None
    waiting = [asyncio.create_task(listener.next(LONG)) for listener in listeners]
    await route(listening.store, MODEL, 1)
    assert [{MODEL}, {MODEL}] == await asyncio.gather(*waiting)
    assert set() == await listeners[0].next(SHORT)
    assert {MODEL: 1} == await listeners[1].generations()


async def test_changes_between_two_calls_are_reported_at_the_next_call(listening: Listening) -> None:
    listener = listening.listener()
    assert await listener.next(LONG) is None
    for generation in (1, 2):
        await route(listening.store, MODEL, generation)
    await route(listening.store, OTHER_MODEL, 1)
    reported: set[str] = set()
    while reported != {MODEL, OTHER_MODEL}:
        changed = await listener.next(LONG)
        assert changed, "a notification was lost"
        reported |= changed
    assert {MODEL: 2, OTHER_MODEL: 1} == await listener.generations()


async def test_rolled_back_changes_are_not_reported(listening: Listening) -> None:
    listener = listening.listener()
    assert await listener.next(LONG) is None
    with pytest.raises(RuntimeError, match="fails here"):
        async with listening.store.transaction() as records:
            await records.set_routing(MODEL, Routing(1, champion=1))
            raise RuntimeError("fails here")
    async with listening.store.transaction() as records:
        await records.change_model(replace(Model(MODEL), owner="ann"))
    assert set() == await listener.next(SHORT)
    assert {} == await listener.generations()


async def test_a_broken_connection_reports_possibly_lost_changes(database: str) -> None:
    async with _listening(database) as listening:
        listener = listening.listener()
        assert await listener.next(LONG) is None
        waiting = asyncio.create_task(listener.next(LONG))
        await asyncio.sleep(0)  # one turn of the loop: the listener waits now
        connection = await asyncpg.connect(database)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await connection.close()
        # A terminated connection ends the wait long before its timeout.
        assert set() == await asyncio.wait_for(waiting, LONG / 2)
        assert await listener.next(LONG) is None
        await route(listening.store, MODEL, 1)
        assert {MODEL} == await listener.next(LONG)


async def test_listening_recovers_after_the_database_was_unavailable(database: str) -> None:
    address = urlsplit(database)
    assert address.hostname and address.port
    async with (
        FaultProxy(address.hostname, address.port) as proxy,
        _listening(database.replace(f":{address.port}/", f":{proxy.port}/")) as listening,
    ):
        listener = listening.listener()
        assert await listener.next(LONG) is None
        proxy.cut()
        while (result := await _next_or_reason(listener)) == set():
            pass
        assert "POSTGRES_UNAVAILABLE" == result
        proxy.heal()
        while (result := await _next_or_reason(listener)) == "POSTGRES_UNAVAILABLE":
            await asyncio.sleep(SHORT)
        assert result is None


async def _next_or_reason(listener: RoutingNotifications) -> set[str] | str | None:
    """Return the changed models, or the reason of the error."""
    try:
        return await listener.next(SHORT)
    except Unavailable as error:
        return error.reason
