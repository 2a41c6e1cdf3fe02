"""Wiring: the one place that builds things."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from flywheel_common.errors import FlywheelError
from flywheel_common.grpc.auth import READ, WRITE, Permissions
from flywheel_common.grpc.channel import channel
from flywheel_common.grpc.server import Server
from flywheel_common.ids import SystemIds
from flywheel_common.kafka import topics
from flywheel_common.kafka.client import ensure_topics
from flywheel_common.kafka.consumer import ConsumerLoop
from flywheel_common.kafka.outbox import Relay
from flywheel_common.kafka.producer import Producer
from flywheel_common.postgres.lease import Lease
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import create_pool
from flywheel_common.storage.s3 import object_store
from flywheel_common.telemetry.logs import get_logger
from flywheel_monitor.archive import Archive, ArchiveSettings
from flywheel_monitor.config import MonitorSettings
from flywheel_monitor.consume import Intake
from flywheel_monitor.gauges import Gauges
from flywheel_monitor.peers import PeerReferences
from flywheel_monitor.ports import ConsumerLag
from flywheel_monitor.queries import Queries
from flywheel_monitor.servicer import MonitorServicer
from flywheel_monitor.store.lag import LagProbe
from flywheel_monitor.store.records import PostgresStore
from flywheel_monitor.store.versions import Versions
from flywheel_monitor.watch import Watch
from flywheel_monitor.windows import Behind
from flywheel_protos.monitor.v1 import monitor_pb2_grpc

log = get_logger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
SERVICE = "flywheel.monitor.v1.MonitorService"
PERMISSIONS: Permissions = {
    **{
        f"/{SERVICE}/{method}": READ
        for method in (
            "GetMonitorPolicy",
            "GetDriftReport",
            "GetPerformance",
            "CompareVariants",
            "GetAlert",
            "ListAlerts",
            "GetIngestStatus",
            "GetPredictionArchive",
        )
    },
    **{f"/{SERVICE}/{method}": WRITE for method in ("SetMonitorPolicy", "AcknowledgeAlert", "ResolveAlert")},
}
_PRUNE_SECONDS = 60.0


async def build(settings: MonitorSettings, stack: AsyncExitStack) -> Server:
    """The whole service, migrated, with its consumer, watch, archive and outbox relay in the background."""
    pool = await stack.enter_async_context(
        create_pool(
            settings.dsn,
            application_name="flywheel-monitor",
            max_size=settings.postgres_pool_size,
            statement_timeout_seconds=settings.postgres_statement_timeout_seconds,
        )
    )
    await migrate(pool, MIGRATIONS)
    consumed = (topics.PREDICTION_LOGGED, topics.OUTCOME_RECORDED)

    channels = {}
    for peer, address in (("registry", settings.registry_address), ("feature", settings.feature_address)):
        channels[peer] = channel(
            address,
            client_name="monitor",
            token=settings.service_token.get_secret_value(),
            default_timeout_seconds=5.0,
        )
        stack.push_async_callback(channels[peer].close)
    objects = await stack.enter_async_context(object_store(settings))
    producer = await stack.enter_async_context(
        Producer(settings.kafka_bootstrap, client_id="flywheel-monitor")
    )

    pane_us = settings.pane_seconds * 1_000_000
    gauges = Gauges()
    versions = Versions(pool, PeerReferences(channels["registry"], channels["feature"]))
    store = PostgresStore(pool, versions, pane_us)
    lag = LagProbe(settings.kafka_bootstrap, pool, settings.consumer_group, consumed)
    stack.push_async_callback(lag.close)
    archive = Archive(
        store,
        objects,
        ArchiveSettings(
            settings.s3_bucket,
            settings.archive_prefix,
            settings.archive_rows,
            settings.archive_idle_seconds,
            settings.archive_age_seconds,
        ),
        gauges,
    )

    watch = Watch(
        store,
        gauges,
        SystemIds(),
        behind=lambda: _behind(lag, gauges),
        delay_us=int(settings.out_of_order_seconds * 1e6),
        poll_seconds=settings.watch_poll_seconds,
    )
    consumer = ConsumerLoop(
        bootstrap=settings.kafka_bootstrap,
        group=settings.consumer_group,
        topics=consumed,
        handler=Intake(store.on).handle,
        pool=pool,
        batch_records=settings.batch_records,
    )
    servicer = MonitorServicer(
        store=store,
        queries=Queries(store, pane_us),
        archive=archive,
        lag=lag,
        pane_us=pane_us,
    )
    server = Server(
        settings,
        servicers=[(monitor_pb2_grpc.add_MonitorServiceServicer_to_server, servicer)],
        full_service_names=[SERVICE],
        permissions=PERMISSIONS,
        readiness=store.ready,
    )

    async def archive_log() -> None:
        await _outlast(objects.ensure_bucket)
        await archive.run()

    async def consume() -> None:
        await ensure_topics(
            settings.kafka_bootstrap,
            topics.specs((*consumed, topics.DRIFT_DETECTED), settings.kafka_partitions),
        )
        await consumer.run()

    ttl = settings.lease_ttl_seconds
    watch_lease, archive_lease = (
        Lease(pool, "watch", ttl_seconds=ttl),
        Lease(pool, "archive", ttl_seconds=ttl),
    )
    server.add_background("consumer", lambda: _outlast(consume))
    server.add_background("watch", lambda: watch_lease.run(lambda _: watch.run()))
    server.add_background("archive", lambda: archive_lease.run(lambda _: archive_log()))
    server.add_background("outbox relay", Relay(pool, producer).run)
    server.add_background("prune", lambda: _prune(store, int(settings.keep_days * 86_400_000_000)))
    return server


async def _behind(lag: ConsumerLag, gauges: Gauges) -> Behind:
    found = await lag.read()
    gauges.lag(found.total)
    return Behind(found.behind(topics.PREDICTION_LOGGED), found.behind(topics.OUTCOME_RECORDED))


async def _outlast(work: Callable[[], Awaitable[None]]) -> None:
    """Starts again after a dependency that was down at start."""
    while True:
        try:
            await work()
            return
        except FlywheelError as error:
            if not error.retryable:
                raise
            log.warning("waiting for a dependency", reason=error.reason)
            await asyncio.sleep(1.0)


async def _prune(store: PostgresStore, keep_us: int) -> None:
    while True:
        try:
            async with store.transaction() as records:
                pruned = await records.prune(keep_us)
        except FlywheelError as error:
            if not error.retryable:
                raise
            pruned = 0
        if not pruned:
            await asyncio.sleep(_PRUNE_SECONDS)
