"""A servicer behind the real gRPC server, for tests that provide the stores themselves."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import grpc
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from flywheel_common.config import ServiceSettings
from flywheel_common.grpc.auth import Permissions
from flywheel_common.grpc.server import AddServicer, Server


async def served(
    stack: AsyncExitStack,
    settings: type[ServiceSettings],
    add: AddServicer,
    servicer: Any,
    *,
    service: str,
    permissions: Permissions,
) -> grpc.aio.Channel:
    """A channel to the servicer; `stack` closes it and stops the server. `service` is the full service
    name."""
    address = await listening(stack, settings, add, servicer, service=service, permissions=permissions)
    return await stack.enter_async_context(grpc.aio.insecure_channel(address))


async def listening(
    stack: AsyncExitStack,
    settings: type[ServiceSettings],
    add: AddServicer,
    servicer: Any,
    *,
    service: str,
    permissions: Permissions,
) -> str:
    """The address of the servicer; `stack` stops its server."""
    unused: dict[str, Any] = {
        "postgres_dsn": SecretStr("postgresql://unused"),
        "kafka_bootstrap": "127.0.0.1:1",
        "s3_endpoint": "http://127.0.0.1:1",
        "s3_access_key": SecretStr("none"),
        "s3_secret_key": SecretStr("none"),
        "s3_bucket": "b",
    }
    server = Server(
        settings(listen="127.0.0.1:0", metrics_listen="", drain_seconds=0, grace_seconds=1, **unused),
        servicers=[(add, servicer)],
        full_service_names=[service],
        permissions=permissions,
        registry=CollectorRegistry(),
    )
    await server.start()
    stack.push_async_callback(server.stop)
    return f"127.0.0.1:{server.port}"
