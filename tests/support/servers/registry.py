"""A registry in this process, and the errors that its callers receive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import grpc

from flywheel_common.clock import Clock, SystemClock
from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_common.grpc.channel import channel, from_rpc_error
from flywheel_common.grpc.server import Server
from flywheel_protos.registry.v1 import registry_pb2_grpc
from flywheel_registry.artifacts.graph import Feature
from flywheel_registry.config import RegistrySettings
from flywheel_registry.fakes.checks import MemoryFeatureSets, MemoryGraphs
from flywheel_registry.fakes.gateways import MemoryGateways
from flywheel_registry.fakes.lease import UncontestedLease
from flywheel_registry.fakes.monitor import MemoryExperiments, MemoryMonitor
from flywheel_registry.fakes.routing_notifications import MemoryRoutingNotifications
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.server import Ports, build, wire

NO_TICKS: dict[str, Any] = {"tick_seconds": 3600.0}
"""Settings of a registry that decides no rollout during a test."""


def registry_settings(**changes: Any) -> RegistrySettings:
    """Return settings with a free port; backends that `changes` do not name are unreachable."""
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "metrics_listen": "",
        "drain_seconds": 0.0,
        "grace_seconds": 0.2,
        "log_rpcs": False,
        "postgres_dsn": "postgresql://127.0.0.1:1/none",
        "kafka_bootstrap": "127.0.0.1:1",
        "s3_endpoint": "http://127.0.0.1:1",
        "s3_access_key": "none",
        "s3_secret_key": "none",
        "s3_bucket": "none",
        "monitor_address": "127.0.0.1:1",
        "feature_address": "127.0.0.1:1",
        "tick_seconds": 0.05,
        "tick_lease_seconds": 1.0,
    }
    return RegistrySettings(**{**values, **changes})


@asynccontextmanager
async def running_registry(settings: RegistrySettings) -> AsyncIterator[Any]:
    """Run a registry on the real backends and yield a stub to it."""
    async with AsyncExitStack() as stack, running(await build(settings, stack)) as stub:
        yield stub


@asynccontextmanager
async def running_memory_registry(store: MemoryStore, **settings: Any) -> AsyncIterator[Any]:
    """Run a registry without ticks on `store` and other adapters in memory and yield a stub to it."""
    ports, clock = memory_ports(store)
    async with running(wire(registry_settings(**NO_TICKS, **settings), clock, ports)) as stub:
        yield stub


def memory_ports(store: MemoryStore) -> tuple[Ports, Clock]:
    """Return adapters in memory, with `store` as their store, and their clock."""
    clock = SystemClock()

    async def nothing_to_do() -> None:
        pass

    async def no_events_to_send() -> None:
        await asyncio.Event().wait()

    ports = Ports(
        store=store,
        objects=MemoryObjectStore(),
        prepare_objects=nothing_to_do,
        gateways=MemoryGateways(clock),
        notifications=MemoryRoutingNotifications(store),
        monitor=MemoryMonitor(),
        experiments=MemoryExperiments(),
        graphs=MemoryGraphs(),
        features=MemoryFeatureSets(every={"view__a": Feature(4)}),
        ticker_lease=UncontestedLease(),
        ready=lambda: True,
        relay_events=no_events_to_send,
        delete_old=nothing_to_do,
        send_webhooks=no_events_to_send,
    )
    return ports, clock


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[Any]:
    """Run a server with its background tasks and yield a stub with `address` and `methods`."""
    task = asyncio.create_task(server.run_until_signal())
    try:
        while server.port == 0 and not task.done():
            await asyncio.sleep(0.01)
        async with channel(f"127.0.0.1:{server.port}", client_name="tests", health_check=False) as opened:
            stub: Any = registry_pb2_grpc.RegistryServiceStub(opened)
            stub.address = f"127.0.0.1:{server.port}"
            stub.methods = server.methods
            yield stub
    finally:
        server.request_stop()
        await task


class Refusal:
    """The error of a refused call."""

    message = ""


@contextmanager
def refused(code: str, reason: str) -> Iterator[Refusal]:
    """Assert that the block fails with this status code and ErrorInfo reason."""
    refusal = Refusal()
    try:
        yield refusal
    except grpc.RpcError as error:
        mapped = from_rpc_error(error)
        refusal.message = mapped.message
        assert (mapped.code.name, mapped.reason) == (code, reason), (
            f"{mapped.code.name} {mapped.reason}: {mapped.message}"
        )
    else:
        raise AssertionError(f"not refused with {code} {reason}")
