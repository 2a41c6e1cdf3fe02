"""The composition root: builds the registry from its settings."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp

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
from flywheel_common.postgres.pool import Pool, create_pool
from flywheel_common.postgres.transactions import Store
from flywheel_common.storage.objects import ObjectStore
from flywheel_common.storage.part_buffers import PartBuffers
from flywheel_common.storage.s3 import object_store
from flywheel_common.telemetry.logs import get_logger
from flywheel_common.webhooks.delivery import WebhookDeliveries
from flywheel_protos.registry.v1.registry_pb2_grpc import add_RegistryServiceServicer_to_server
from flywheel_registry.api.convert_events import to_event
from flywheel_registry.api.convert_models import production_page
from flywheel_registry.api.convert_serving import spec_digest
from flywheel_registry.api.servicer import RegistryServicer
from flywheel_registry.artifacts.check import VersionCheck
from flywheel_registry.artifacts.parts import PartUploads
from flywheel_registry.artifacts.ports import FeatureSets, GraphRunner
from flywheel_registry.artifacts.transfer import ArtifactTransfer
from flywheel_registry.collection.collection import ArtifactCollection
from flywheel_registry.config import RegistrySettings
from flywheel_registry.deletion.deletion import Deletion
from flywheel_registry.evidence.experiment_verdict import Experiments
from flywheel_registry.evidence.producers import EvidenceProducers
from flywheel_registry.gates.verdicts import ExperimentVerdicts
from flywheel_registry.models.alias_changes import Aliases
from flywheel_registry.models.catalog import ModelCatalog
from flywheel_registry.models.production_reads import ProductionReads
from flywheel_registry.models.tags import VersionTags
from flywheel_registry.permissions import PERMISSIONS, SERVICE
from flywheel_registry.promotion.approvals import Approvals
from flywheel_registry.promotion.evaluation import EvaluationLog
from flywheel_registry.promotion.promotion import Promotions
from flywheel_registry.releases.catalog import ReleaseCatalog
from flywheel_registry.rollback.acknowledgement import Acknowledgements
from flywheel_registry.rollback.rollback import Rollbacks
from flywheel_registry.rollouts.lifecycle import RolloutLifecycle
from flywheel_registry.rollouts.ports import Monitor, RolloutRecords, TickerLease
from flywheel_registry.rollouts.start import RolloutStart
from flywheel_registry.rollouts.ticker import Ticker
from flywheel_registry.serving.desired_state_cache import DesiredStateCache
from flywheel_registry.serving.ports import Gateways, RoutingNotifications
from flywheel_registry.serving.variants import Variants
from flywheel_registry.store.grpc.experiments import GrpcExperiments
from flywheel_registry.store.grpc.features import GrpcFeatureSets
from flywheel_registry.store.grpc.monitor import GrpcMonitor
from flywheel_registry.store.onnxruntime.graphs import OnnxGraphs
from flywheel_registry.store.postgres.gateways import PostgresGateways
from flywheel_registry.store.postgres.routing_notifications import PostgresRoutingNotifications
from flywheel_registry.store.postgres.store import PostgresStore, registry_identity
from flywheel_registry.webhooks.catalog import WebhookCatalog

log = get_logger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
HOUSEKEEPING_SECONDS = 3600.0
RETRY_SECONDS = 1.0
STREAM_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 * 1024))
"""What gRPC receives of a stream before it is read. With the probe, gRPC enlarges this to several MiB, also
for uploads that wait. A message that is being read still arrives as a whole."""
JOIN_SECONDS = 600.0
"""How long joining the parts of an upload may take when its caller sets no deadline."""
ROLLBACK_RESERVE_SECONDS = 5.0
"""How much longer than its wait for gateways a rollback without a deadline may take."""


@dataclass(frozen=True)
class Ports:
    """The adapters that a registry runs on.

    `prepare_objects` makes the object store writable; `ready` returns whether the service can serve.
    `relay_events` sends stored events to Kafka for ever; `delete_old` deletes old answers of idempotent
    requests and old gateways; `send_webhooks` sends what webhooks are to be told, for ever.
    """

    store: Store[RolloutRecords]
    objects: ObjectStore
    prepare_objects: Callable[[], Awaitable[None]]
    gateways: Gateways
    notifications: RoutingNotifications
    monitor: Monitor
    experiments: Experiments
    graphs: GraphRunner
    features: FeatureSets
    ticker_lease: TickerLease
    ready: Callable[[], bool | Awaitable[bool]]
    relay_events: Callable[[], Awaitable[None]]
    delete_old: Callable[[], Awaitable[None]]
    send_webhooks: Callable[[], Awaitable[None]]


async def build(settings: RegistrySettings, stack: AsyncExitStack) -> Server:
    """Return a registry on the real backends; `stack` closes what it opened, in reverse."""
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
    token = settings.service_token.get_secret_value()
    monitor_channel = channel(settings.monitor_address, client_name="registry", token=token, retries=False)
    stack.push_async_callback(monitor_channel.close)
    feature_channel = channel(settings.feature_address, client_name="registry", token=token)
    stack.push_async_callback(feature_channel.close)
    notifications = PostgresRoutingNotifications(pool)
    stack.push_async_callback(notifications.close)
    identity = await registry_identity(pool)
    store, gateways, idempotency = (
        PostgresStore(pool, partial(to_event, registry_id=identity)),
        PostgresGateways(pool),
        Idempotency(pool),
    )

    async def delete_old() -> None:
        await idempotency.trim()
        await gateways.delete_old()

    ports = Ports(
        store=store,
        objects=objects,
        prepare_objects=objects.ensure_bucket,
        gateways=gateways,
        notifications=notifications,
        monitor=GrpcMonitor(
            monitor_channel, settings.monitor_timeout_seconds, settings.monitor_longest_timeout_seconds
        ),
        experiments=GrpcExperiments(monitor_channel, settings.monitor_timeout_seconds),
        graphs=OnnxGraphs(
            objects,
            memory_bytes=settings.check_memory_bytes,
            seconds=settings.check_seconds,
            at_once=settings.checks_at_once,
        ),
        features=GrpcFeatureSets(feature_channel, settings.feature_timeout_seconds),
        ticker_lease=Lease(pool, "rollout-ticker", ttl_seconds=settings.tick_lease_seconds),
        ready=store.ready,
        relay_events=lambda: _relay_events(settings, pool, producer),
        delete_old=delete_old,
        send_webhooks=_webhook_sender(pool, await stack.enter_async_context(aiohttp.ClientSession())),
    )
    return wire(settings, SystemClock(), ports)


def wire(settings: RegistrySettings, clock: Clock, ports: Ports) -> Server:
    """Return the registry on these ports: use cases, servicer and background tasks."""
    desired_state = DesiredStateCache(ports.store, ports.notifications, spec_digest)
    production = ProductionReads(ports.store, production_page)
    lifecycle = RolloutLifecycle(clock)
    checks = VersionCheck(ports.store, ports.graphs, ports.features, clock)
    buffers = PartBuffers(settings.upload_buffers, settings.upload_part_seconds)
    transfer = ArtifactTransfer(ports.store, ports.objects, clock, ports.prepare_objects, checks, buffers)
    servicer = RegistryServicer(
        store=ports.store,
        models=ModelCatalog(clock, settings.max_artifact_bytes),
        production=production,
        artifacts=transfer,
        checks=checks,
        promotions=Promotions(clock),
        experiment_verdicts=ExperimentVerdicts(ports.store, ports.experiments),
        evaluations=EvaluationLog(clock),
        producers=EvidenceProducers(settings.evidence_producers),
        releases=ReleaseCatalog(clock),
        rollout_start=RolloutStart(clock),
        rollout_lifecycle=lifecycle,
        rollbacks=Rollbacks(clock, lifecycle),
        acknowledgements=Acknowledgements(clock, ports.gateways),
        desired_state=desired_state,
        gateways=ports.gateways,
        variants=Variants(clock),
        aliases=Aliases(clock),
        tags=VersionTags(clock),
        deletion=Deletion(clock),
        parts=PartUploads(transfer, ports.objects),
        collection=ArtifactCollection(ports.store, ports.objects, clock),
        idle_seconds=settings.stream_idle_seconds,
        approvals=Approvals(clock),
        webhooks=WebhookCatalog(clock, settings.webhook_hosts),
        rollback_wait_seconds=settings.rollback_wait_seconds,
    )
    server = Server(
        settings,
        servicers=[(add_RegistryServiceServicer_to_server, servicer)],
        full_service_names=[SERVICE],
        permissions=PERMISSIONS,
        deadlines={
            f"/{SERVICE}/RollbackModel": settings.rollback_wait_seconds + ROLLBACK_RESERVE_SECONDS,
            f"/{SERVICE}/CompleteArtifactUpload": JOIN_SECONDS,
        },
        readiness=ports.ready,
        options=STREAM_WINDOW,
    )
    ticker = Ticker(ports.store, lifecycle, ports.monitor, ports.gateways, clock, settings.tick_seconds)
    server.add_background("production reads", production.run, stops_last=True)
    server.add_background("desired state", desired_state.run)
    server.add_background("rollout ticker", lambda: ports.ticker_lease.run(lambda _: ticker.run()))
    server.add_background("housekeeping", lambda: _housekeeping(ports.delete_old))
    server.add_background("webhooks", ports.send_webhooks)
    server.add_background("outbox relay", ports.relay_events, stops_last=True)
    return server


async def _relay_events(settings: RegistrySettings, pool: Pool, producer: Producer) -> None:
    """Send the outbox to Kafka; wait for Kafka when it is down at the start."""
    wanted = topics.specs([topics.MODEL_STAGE_CHANGED, topics.ROLLOUT_CHANGED], settings.kafka_partitions)
    while True:
        try:
            await ensure_topics(settings.kafka_bootstrap, wanted)
            break
        except FlywheelError as error:
            if not error.retryable:
                raise
            log.warning("waiting for kafka", reason=error.reason)
            await asyncio.sleep(RETRY_SECONDS)
    await Relay(pool, producer).run()


def _webhook_sender(pool: Pool, session: aiohttp.ClientSession) -> Callable[[], Awaitable[None]]:
    """Return what sends deliveries for ever, in one replica at a time."""
    deliveries, lease = WebhookDeliveries(pool, session), Lease(pool, "webhooks")
    return lambda: lease.run(lambda _: deliveries.run())


async def _housekeeping(delete_old: Callable[[], Awaitable[None]]) -> None:
    """Delete what is old, now and every hour."""
    while True:
        try:
            await delete_old()
        except FlywheelError as error:
            log.warning("housekeeping postponed", reason=error.reason)
        await asyncio.sleep(HOUSEKEEPING_SECONDS)
