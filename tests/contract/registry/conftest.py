"""The registry's stores, in memory and real, alone and behind the whole server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import flywheel_registry
from flywheel_common.clock import SystemClock
from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import create_pool
from flywheel_local.s3 import S3
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_registry.config import RegistrySettings
from flywheel_registry.memory import MemoryStore
from flywheel_registry.memory_serving import MemoryGateways, MemoryNotices
from flywheel_registry.ports import Store
from flywheel_registry.server import wire
from flywheel_registry.store.records import PostgresStore
from flywheel_registry.testing import Story, running, serving, settings_for_tests
from flywheel_registry.transfer import Transfers

MIGRATIONS = Path(flywheel_registry.__file__).parent / "migrations"


@pytest.fixture(params=["memory", "postgres"])
def over(request: pytest.FixtureRequest) -> str:
    """What stands behind the port under test."""
    return str(request.param)


@pytest.fixture
def dsn(request: pytest.FixtureRequest, over: str) -> str:
    """Empty for what is in memory."""
    return "" if over == "memory" else str(request.getfixturevalue("database"))


@dataclass
class Backed:
    store: Store
    emitted: Callable[[], Awaitable[list[tuple[str, str]]]]
    """Kind and reason of the events that left, in order."""


@pytest.fixture
async def backed(dsn: str) -> AsyncIterator[Backed]:
    if not dsn:
        memory = MemoryStore()

        async def left() -> list[tuple[str, str]]:
            return [(type(event).__name__, event.reason) for event, _ in memory.events]

        yield Backed(memory, left)
        return
    async with create_pool(dsn) as pool:
        await migrate(pool, MIGRATIONS)

        async def sent() -> list[tuple[str, str]]:
            found = await pool.fetch("SELECT topic, event_id FROM outbox ORDER BY id")
            return [(row["topic"], row["event_id"]) for row in found]

        yield Backed(
            PostgresStore(pool, lambda event, at: (type(event).__name__, Event(id=event.reason))), sent
        )


@pytest.fixture
def store(backed: Backed) -> Store:
    return backed.store


@pytest.fixture
def settings(request: pytest.FixtureRequest, over: str) -> RegistrySettings | None:
    """A registry on the real stores that decides no rollout by itself; None for what is in memory."""
    if over == "memory":
        return None
    s3: S3 = request.getfixturevalue("s3")
    return settings_for_tests(
        postgres_dsn=request.getfixturevalue("database"),
        s3_endpoint=s3.endpoint,
        s3_access_key=s3.access_key,
        s3_secret_key=s3.secret_key,
        s3_bucket=request.getfixturevalue("bucket"),
        tick_seconds=3600.0,
    )


@dataclass
class Edge:
    """A whole registry, reached through its channel."""

    story: Story
    emitted: Callable[[], Awaitable[list[str]]]
    """Topics of the events that left, in order."""


@pytest.fixture
async def edge(settings: RegistrySettings | None) -> AsyncIterator[Edge]:
    async with AsyncExitStack() as stack:
        if settings is None:
            memory, clock = MemoryStore(), SystemClock()
            topics = {"StageChanged": "model.stage_changed", "RolloutChanged": "rollout.changed"}

            async def left() -> list[str]:
                return [topics[type(event).__name__] for event, _ in memory.events]

            server = wire(
                settings_for_tests(),
                clock,
                store=memory,
                gateways=MemoryGateways(clock),
                notices=MemoryNotices(memory),
                transfers=Transfers(memory, MemoryObjectStore(), clock, _nothing_to_prepare),
                readiness=lambda: True,
            )
            yield Edge(Story(await stack.enter_async_context(serving(server))), left)
            return
        stub: Any = await stack.enter_async_context(running(settings))

        async def sent() -> list[str]:
            connection = await asyncpg.connect(settings.dsn)
            try:
                return [
                    row["topic"] for row in await connection.fetch("SELECT topic FROM outbox ORDER BY id")
                ]
            finally:
                await connection.close()

        yield Edge(Story(stub), sent)


async def _nothing_to_prepare() -> None:
    """What is in memory is there."""


@pytest.fixture
def story(edge: Edge) -> Story:
    return edge.story
