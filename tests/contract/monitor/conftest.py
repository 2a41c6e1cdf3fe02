"""The monitor's ports over memory and over their real stores: each contract test runs over both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from flywheel_common.kafka.producer import Producer
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import create_pool
from flywheel_monitor.server import MIGRATIONS
from tests.support.servers.monitor import LocalMonitor, memory_monitor, postgres_monitor, served
from tests.support.servers.monitor_streams import KafkaStream, MemoryStream, Stream


@pytest.fixture
def dsn(request: pytest.FixtureRequest) -> str:
    """A database, or "" for memory."""
    return "" if request.param == "memory" else str(request.getfixturevalue("database"))


@pytest.fixture
async def monitor(dsn: str) -> AsyncIterator[LocalMonitor]:
    """The store in memory and in PostgreSQL."""
    if not dsn:
        yield memory_monitor()
        return
    async with postgres_monitor(dsn) as found:
        yield found


@pytest.fixture
async def edge(database: str) -> AsyncIterator[LocalMonitor]:
    """The store in PostgreSQL; `stub` is served over it."""
    async with postgres_monitor(database) as found:
        yield found


@pytest.fixture
async def stub(edge: LocalMonitor) -> AsyncIterator[Any]:
    """A gRPC stub of the monitor over `edge`."""
    async with served(edge.store) as found:
        yield found


@pytest.fixture
def kafka_and_dsn(request: pytest.FixtureRequest) -> tuple[Any, str]:
    """Kafka and a database, or (None, "") for memory."""
    if request.param == "memory":
        return None, ""
    return request.getfixturevalue("kafka"), request.getfixturevalue("database")


@pytest.fixture
async def stream(kafka_and_dsn: tuple[Any, str]) -> AsyncIterator[Stream]:
    """A consumed stream in memory, and in Kafka with the positions in PostgreSQL."""
    kafka, dsn = kafka_and_dsn
    if kafka is None:
        yield MemoryStream()
        return
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(create_pool(dsn))
        await migrate(pool, MIGRATIONS)
        producer = await stack.enter_async_context(Producer(kafka.bootstrap, client_id="test"))
        found = KafkaStream(kafka, pool, producer)
        stack.push_async_callback(found.lag.close)
        await found.create()
        yield found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, store in (("dsn", "postgres"), ("kafka_and_dsn", "kafka")):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, ["memory", store], indirect=True)
