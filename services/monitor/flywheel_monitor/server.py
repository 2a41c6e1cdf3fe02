"""The composition root: builds the monitor from its settings."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import aiohttp
from prometheus_client import REGISTRY, CollectorRegistry

from flywheel_common.clock import SystemClock
from flywheel_common.errors import FlywheelError
from flywheel_common.event_time import EventTimeBound
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
from flywheel_common.postgres.pool import Pool
from flywheel_common.postgres.transactions import Store
from flywheel_common.storage.s3 import object_store
from flywheel_common.telemetry.logs import get_logger
from flywheel_common.webhooks.delivery import WebhookDeliveries
from flywheel_monitor.api.servicer import ApiRecords, MonitorServicer
from flywheel_monitor.archive.metrics import ArchiveMetrics
from flywheel_monitor.archive.ports import ArchiveObjects, ArchiveQueue
from flywheel_monitor.archive.prediction_archive import ArchiveSettings, PredictionArchive
from flywheel_monitor.config import MonitorSettings
from flywheel_monitor.evaluation.evaluator import EvaluationRecords, Evaluator
from flywheel_monitor.evaluation.metrics import EvaluationMetrics
from flywheel_monitor.experiments.counting import count_events_forever
from flywheel_monitor.experiments.ports import ExperimentCounts
from flywheel_monitor.ingest.consumer import EventHandler
from flywheel_monitor.ingest.metrics import IngestMetrics
from flywheel_monitor.ingest.ports import ConsumerLag, Retention, WaitingPredictions
from flywheel_monitor.ingest.retention import prune_forever
from flywheel_monitor.ingest.waiting import count_waiting_forever
from flywheel_monitor.permissions import PERMISSIONS, SERVICE
from flywheel_monitor.replay.ports import EventLog, ScratchStates
from flywheel_monitor.replay.replay import Replays
from flywheel_monitor.store.grpc.references import GrpcReferences
from flywheel_monitor.store.kafka.event_log import KafkaEventLog
from flywheel_monitor.store.kafka.lag import KafkaLag
from flywheel_monitor.store.postgres.pool import monitor_pool
from flywheel_monitor.store.postgres.records import PostgresStore
from flywheel_monitor.store.postgres.scratch import PostgresScratchStates
from flywheel_monitor.store.postgres.versions import VersionCache
from flywheel_monitor.windows.watermark import UnreadPartitions
from flywheel_protos.monitor.v1 import monitor_pb2_grpc

log = get_logger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
CONSUMED = (topics.PREDICTION_LOGGED, topics.OUTCOME_RECORDED)
PEER_SECONDS = 5.0
RunInOneReplica = Callable[[Callable[[int], Awaitable[None]]], Awaitable[None]]


async def build(
    settings: MonitorSettings, stack: AsyncExitStack, prometheus: CollectorRegistry = REGISTRY
) -> Server:
    """The service on its real backends, with the database migrated."""
    pool = await stack.enter_async_context(
        monitor_pool(
            settings.dsn,
            max_size=settings.postgres_pool_size,
            statement_timeout_seconds=settings.postgres_statement_timeout_seconds,
        )
    )
    await migrate(pool, MIGRATIONS)
    channels = []
    for address in (settings.registry_address, settings.feature_address):
        peer = channel(
            address,
            client_name="monitor",
            token=settings.service_token.get_secret_value(),
            default_timeout_seconds=PEER_SECONDS,
        )
        stack.push_async_callback(peer.close)
        channels.append(peer)
    objects = await stack.enter_async_context(object_store(settings))
    producer = await stack.enter_async_context(
        Producer(settings.kafka_bootstrap, client_id="flywheel-monitor")
    )
    versions = VersionCache(pool, GrpcReferences(*channels))
    store = PostgresStore(pool, versions, pane_us(settings), settings.kafka_partitions)
    await store.adopt_panes()
    lag = KafkaLag(settings.kafka_bootstrap, pool, settings.consumer_group, CONSUMED)
    stack.push_async_callback(lag.close)
    ports = Ports(
        store=store,
        lag=lag,
        objects=objects,
        event_log=KafkaEventLog(settings.kafka_bootstrap),
        scratch=PostgresScratchStates(
            pool,
            settings.dsn,
            MIGRATIONS,
            group=settings.consumer_group,
            pane_us=pane_us(settings),
            skew_seconds=settings.max_clock_skew_seconds,
            partitions=settings.kafka_partitions,
        ),
        ready=store.ready,
        lease=lambda name: Lease(pool, name, ttl_seconds=settings.lease_ttl_seconds).run,
        consume_events=lambda: _consume(settings, pool, store),
        relay_events=Relay(pool, producer).run,
        send_webhooks=WebhookDeliveries(pool, await stack.enter_async_context(aiohttp.ClientSession())).run,
    )
    return wire(settings, ports, prometheus=prometheus)


class Records(
    ApiRecords, EvaluationRecords, ArchiveQueue, Retention, WaitingPredictions, ExperimentCounts, Protocol
):
    """What the service reads and changes in one transaction."""


@dataclass(frozen=True)
class Ports:
    """The adapters that the service uses. `ready`: whether the store responds.

    `lease`: the name of a lease → what runs work for ever, in one replica at a time. `consume_events` ingests
    predictions and outcomes, `relay_events` sends stored events to Kafka, `send_webhooks` sends changes of
    alerts to sinks, all for ever.
    """

    store: Store[Records]
    lag: ConsumerLag
    objects: ArchiveObjects
    event_log: EventLog
    scratch: ScratchStates
    ready: Callable[[], Awaitable[bool]]
    lease: Callable[[str], RunInOneReplica]
    consume_events: Callable[[], Awaitable[None]]
    relay_events: Callable[[], Awaitable[None]]
    send_webhooks: Callable[[], Awaitable[None]]


def wire(settings: MonitorSettings, ports: Ports, *, prometheus: CollectorRegistry) -> Server:
    """The service on these ports."""
    ingest_metrics = IngestMetrics(prometheus)
    archive = PredictionArchive(
        ports.store,
        ports.objects,
        ArchiveSettings(
            settings.s3_bucket,
            settings.archive_prefix,
            settings.archive_rows,
            settings.archive_idle_seconds,
            settings.archive_age_seconds,
        ),
        ArchiveMetrics(prometheus),
    )

    async def unread_partitions() -> UnreadPartitions:
        lag = await ports.lag.read()
        ingest_metrics.lag(lag.total)
        return UnreadPartitions(
            lag.unread_partitions(topics.PREDICTION_LOGGED), lag.unread_partitions(topics.OUTCOME_RECORDED)
        )

    evaluator = Evaluator(
        ports.store,
        EvaluationMetrics(prometheus),
        SystemIds(),
        unread=unread_partitions,
        delay_us=int(settings.out_of_order_seconds * 1e6),
        poll_seconds=settings.watch_poll_seconds,
    )
    servicer = MonitorServicer(
        store=ports.store,
        archive=archive,
        lag=ports.lag,
        replays=Replays(
            ports.store,
            ports.event_log,
            ports.scratch,
            skew_us=int(settings.max_clock_skew_seconds * 1e6),
        ),
        pane_us=pane_us(settings),
    )
    server = Server(
        settings,
        servicers=[(monitor_pb2_grpc.add_MonitorServiceServicer_to_server, servicer)],
        full_service_names=[SERVICE],
        permissions=PERMISSIONS,
        readiness=ports.ready,
        registry=prometheus,
    )

    async def write_archive() -> None:
        await _retry_start(ports.objects.ensure_bucket)
        await archive.run()

    webhooks_in_one_replica = ports.lease("webhooks")
    server.add_background("webhooks", lambda: webhooks_in_one_replica(lambda _: ports.send_webhooks()))
    evaluate_in_one_replica, archive_in_one_replica = ports.lease("watch"), ports.lease("archive")
    server.add_background("watch", lambda: evaluate_in_one_replica(lambda _: evaluator.run()))
    server.add_background("archive", lambda: archive_in_one_replica(lambda _: write_archive()))
    keep = timedelta(days=settings.keep_days)
    keep_minutes_us = int(settings.keep_minutes_days * 86_400_000_000)
    server.add_background("prune", lambda: prune_forever(ports.store, keep, keep_minutes_us, SystemClock()))
    references_in_one_replica = ports.lease("references")
    server.add_background(
        "references",
        lambda: references_in_one_replica(
            lambda _: count_waiting_forever(ports.store, settings.watch_poll_seconds)
        ),
    )
    experiments_in_one_replica = ports.lease("experiments")
    server.add_background(
        "experiments",
        lambda: experiments_in_one_replica(
            lambda _: count_events_forever(ports.store, settings.watch_poll_seconds)
        ),
    )
    server.add_background("consumer", lambda: _retry_start(ports.consume_events))
    server.add_background("outbox relay", ports.relay_events, stops_last=True)
    return server


def pane_us(settings: MonitorSettings) -> int:
    return settings.pane_seconds * 1_000_000


async def _consume(settings: MonitorSettings, pool: Pool, store: PostgresStore) -> None:
    await ensure_topics(
        settings.kafka_bootstrap,
        topics.specs((*CONSUMED, topics.DRIFT_DETECTED), settings.kafka_partitions),
    )
    await ConsumerLoop(
        bootstrap=settings.kafka_bootstrap,
        group=settings.consumer_group,
        topics=CONSUMED,
        handler=EventHandler(store.on, EventTimeBound(SystemClock(), settings.max_clock_skew_seconds)).handle,
        pool=pool,
        # The handler decodes similar records together.
        decode_events=False,
        batch_records=settings.batch_records,
        linger_seconds=settings.linger_seconds,
    ).run()


async def _retry_start(work: Callable[[], Awaitable[None]]) -> None:
    """Run the work, and start it again while a dependency that it needs is unavailable."""
    while True:
        try:
            await work()
            return
        except FlywheelError as error:
            if not error.retryable:
                raise
            log.warning("waiting for a dependency", reason=error.reason)
            await asyncio.sleep(1.0)
