"""A running echo server and channels to it, for the tests of the common runtime."""

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
