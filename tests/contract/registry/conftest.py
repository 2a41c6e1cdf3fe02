"""The registry's store in memory and on PostgreSQL, and a registry on the store in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import create_pool
from flywheel_common.postgres.transactions import Store
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_registry.audit.chain import AuditHead
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.server import MIGRATIONS
from flywheel_registry.store.postgres.store import PostgresStore
from tests.support.builders.registry import ModelClient
from tests.support.servers.registry import running_memory_registry


@pytest.fixture(params=["memory", "postgres"])
def dsn(request: pytest.FixtureRequest) -> str:
    """DSN of a new database; empty for the adapter in memory."""
    return "" if request.param == "memory" else str(request.getfixturevalue("database"))


@dataclass
class ObservedStore:
    """A store, and the events that its transactions sent."""

    store: Store[RolloutRecords]
    emitted: Callable[[], Awaitable[list[tuple[str, str]]]]
    """Returns (class, reason) of the sent events, in order."""
    heads: Callable[[], Awaitable[list[AuditHead]]]
    """Returns the heads that the events carry, in order."""


@pytest.fixture
async def observed(dsn: str) -> AsyncIterator[ObservedStore]:
    if not dsn:
        memory = MemoryStore()

        async def in_memory() -> list[tuple[str, str]]:
            return [(type(event).__name__, event.reason) for event, _ in memory.events]

        async def memory_heads() -> list[AuditHead]:
            return memory.heads

        yield ObservedStore(memory, in_memory, memory_heads)
        return
    async with create_pool(dsn) as pool:
        await migrate(pool, MIGRATIONS)

        async def in_outbox() -> list[tuple[str, str]]:
            found = await pool.fetch("SELECT topic, event_id FROM outbox ORDER BY id")
            return [(row["topic"], row["event_id"]) for row in found]

        async def heads_in_outbox() -> list[AuditHead]:
            values = [
                Event.FromString(row["value"])
                for row in await pool.fetch("SELECT value FROM outbox ORDER BY id")
            ]
            return [
                AuditHead(int(number), text) for number, _, text in (v.source.partition(" ") for v in values)
            ]

        # Class, reason and head of an event are readable in the outbox as its topic, id and source.
        store = PostgresStore(
            pool,
            lambda event, at, head: (
                type(event).__name__,
                Event(id=event.reason, source=f"{head.sequence} {head.hash}"),
            ),
        )
        yield ObservedStore(store, in_outbox, heads_in_outbox)


@pytest.fixture
def store(observed: ObservedStore) -> Store[RolloutRecords]:
    return observed.store


@pytest.fixture
def memory_store() -> MemoryStore:
    """The store behind `client`."""
    return MemoryStore()


@pytest.fixture
async def client(memory_store: MemoryStore) -> AsyncIterator[ModelClient]:
    """A client of a registry in memory that decides no rollouts."""
    async with running_memory_registry(memory_store) as stub:
        yield ModelClient(stub)
