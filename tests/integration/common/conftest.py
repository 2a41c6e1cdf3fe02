"""Fixtures for the common runtime: a running echo server, a database with two tables, a Kafka producer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from flywheel_common.config import ServiceSettings
from flywheel_common.grpc.channel import channel
from flywheel_common.grpc.server import Server
from flywheel_common.kafka.producer import Producer
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import Pool, connection, create_pool
from tests.support.echo import SERVICE, Echo, EchoStub, add_echo


@dataclass
class Running:
    server: Server
    echo: Echo
    stub: EchoStub
    channel: grpc.aio.Channel
    registry: CollectorRegistry

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"


Start = Callable[..., Awaitable[Running]]


def test_settings(**changes: Any) -> ServiceSettings:
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "metrics_listen": "",
        "drain_seconds": 0.05,
        "grace_seconds": 1.0,
        "log_rpcs": False,
        **changes,
    }
    return ServiceSettings(**values)


test_settings.__test__ = False  # type: ignore[attr-defined]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def begin(
            *,
            channel_options: dict[str, Any] | None = None,
            server_options: dict[str, Any] | None = None,
            **settings: Any,
        ) -> Running:
            echo, registry = Echo(), CollectorRegistry()
            server = Server(
                test_settings(**settings),
                servicers=[(add_echo, echo)],
                full_service_names=[SERVICE],
                registry=registry,
                **(server_options or {}),
            )
            await stack.enter_async_context(server)
            server.health.set_ready()
            opened = channel(f"127.0.0.1:{server.port}", client_name="test", **(channel_options or {}))
            await stack.enter_async_context(opened)
            return Running(server, echo, EchoStub(opened), opened, registry)

        yield begin


@pytest.fixture
async def running(start: Start) -> Running:
    return await start()


TABLES = """
CREATE TABLE thing (name text CONSTRAINT uq_thing_name PRIMARY KEY, n int CHECK (n > 0));
CREATE TABLE effect (id text, topic text, partition int, at bigserial)
"""


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    """A pool of a migrated database with the tables `thing` and `effect`."""
    async with create_pool(database) as opened:
        await migrate(opened)
        async with connection(opened) as conn:
            await conn.execute(TABLES)
        yield opened


@pytest.fixture
async def producer(kafka: Any) -> AsyncIterator[Producer]:
    async with Producer(kafka.bootstrap, client_id="test") as opened:
        yield opened
