"""Builds the registry: the only place that knows which implementation stands behind which port."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from flywheel_common.clock import Clock, SystemClock
from flywheel_common.errors import FlywheelError
from flywheel_common.grpc.channel import channel
from flywheel_common.grpc.server import Server
from flywheel_common.kafka import topics
from flywheel_common.kafka.client import ensure_topics
from flywheel_common.kafka.outbox import Relay
from flywheel_common.kafka.producer import Producer
from flywheel_common.postgres.idempotency import Idempotency
from flywheel_common.postgres.lease import Lease
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import create_pool
from flywheel_common.storage.s3 import object_store
from flywheel_common.telemetry.logs import get_logger
from flywheel_protos.registry.v1.registry_pb2_grpc import add_RegistryServiceServicer_to_server
from flywheel_registry.catalog import Catalog
from flywheel_registry.config import RegistrySettings
from flywheel_registry.convert_events import to_event
from flywheel_registry.permissions import PERMISSIONS, SERVICE
from flywheel_registry.ports import Gateways, Store
from flywheel_registry.promotion import Promotions
from flywheel_registry.rollback import Rollbacks
from flywheel_registry.rollouts import Rollouts
from flywheel_registry.servicer import RegistryServicer
from flywheel_registry.store.heartbeats import PostgresGateways
from flywheel_registry.store.monitor import MonitorPeer
from flywheel_registry.store.notices import PostgresNotices
from flywheel_registry.store.records import PostgresStore
from flywheel_registry.ticker import Ticker
from flywheel_registry.transfer import Transfers
from flywheel_registry.watching import Notices, ServingBoard

log = get_logger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
HOUSEKEEPING_SECONDS = 3600.0


async def build(settings: RegistrySettings, stack: AsyncExitStack) -> Server:
    """The wired server; `stack` closes what it opened, in reverse."""
    clock = SystemClock()
    pool = await stack.enter_async_context(
        create_pool(
            settings.dsn,
            application_name="flywheel-registry",
            max_size=settings.postgres_pool_size,
            statement_timeout_seconds=settings.postgres_statement_timeout_seconds,
        )
    )
    await migrate(pool, MIGRATIONS)
    objects = await stack.enter_async_context(object_store(settings, prefix=settings.s3_prefix))
    producer = Producer(settings.kafka_bootstrap, client_id="flywheel-registry")
    stack.push_async_callback(producer.close)
    monitor_channel = channel(
        settings.monitor_address,
        client_name="registry",
        token=settings.service_token.get_secret_value(),
        retries=False,
    )
    stack.push_async_callback(monitor_channel.close)

    store = PostgresStore(pool, to_event)
    gateways = PostgresGateways(pool)
    notices = PostgresNotices(pool)
    stack.push_async_callback(notices.close)
    monitor = MonitorPeer(monitor_channel, settings.monitor_timeout_seconds)
    ticker = Ticker(store, Rollouts(clock), monitor, settings.tick_seconds)
    idempotency = Idempotency(pool)
    server = wire(
        settings,
        clock,
        store=store,
        gateways=gateways,
        notices=notices,
        transfers=Transfers(store, objects, clock, objects.ensure_bucket),
        readiness=store.ready,
    )
    lease = Lease(pool, "rollout-ticker", ttl_seconds=settings.tick_lease_seconds)
    relay = Relay(pool, producer)

    async def relay_events() -> None:
        await _until_done(lambda: _prepare_topics(settings))
        await relay.run()

    async def housekeeping() -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            try:
                await idempotency.trim()
                await gateways.forget_old()
            except FlywheelError as error:
                log.warning("housekeeping put off", reason=error.reason)

    server.add_background("rollout ticker", lambda: lease.run(lambda _: ticker.run()))
    server.add_background("outbox relay", relay_events)
    server.add_background("housekeeping", housekeeping)
    return server


def wire(
    settings: RegistrySettings,
    clock: Clock,
    *,
    store: Store,
    gateways: Gateways,
    notices: Notices,
    transfers: Transfers,
    readiness: Callable[[], Any],
) -> Server:
    """The server over these stores: use cases, servicer, and the serving board that its streams need."""
    board = ServingBoard(store, notices)
    rollouts = Rollouts(clock)
    servicer = RegistryServicer(
        store=store,
        catalog=Catalog(clock, settings.max_artifact_bytes),
        transfers=transfers,
        promotions=Promotions(clock),
        rollouts=rollouts,
        rollbacks=Rollbacks(clock, rollouts, gateways),
        board=board,
        gateways=gateways,
        rollback_wait_seconds=settings.rollback_wait_seconds,
    )
    server = Server(
        settings,
        servicers=[(add_RegistryServiceServicer_to_server, servicer)],
        full_service_names=[SERVICE],
        permissions=PERMISSIONS,
        deadlines={f"/{SERVICE}/RollbackModel": settings.rollback_wait_seconds + 5.0},
        readiness=readiness,
    )
    server.add_background("serving board", board.run)
    return server


async def _prepare_topics(settings: RegistrySettings) -> None:
    wanted = topics.specs([topics.MODEL_STAGE_CHANGED, topics.ROLLOUT_CHANGED], settings.kafka_partitions)
    await ensure_topics(settings.kafka_bootstrap, wanted)


async def _until_done(work: Callable[[], Awaitable[None]]) -> None:
    """Repeats until it succeeds: a backend that is down at start must not stop the registry."""
    while True:
        try:
            await work()
            return
        except FlywheelError as error:
            if not error.retryable:
                raise
            log.warning("a backend is not there yet", reason=error.reason)
            await asyncio.sleep(1.0)
