"""The composition root: puts the gRPC service and the stream worker on their adapters (`ports`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from flywheel_common.clock import SystemClock
from flywheel_common.errors import FlywheelError
from flywheel_common.event_time import EventTimeBound
from flywheel_common.granted.access import ObjectAccess
from flywheel_common.grpc.attempt_tokens import WithAttemptTokens
from flywheel_common.grpc.server import Server
from flywheel_common.ids import SystemIds
from flywheel_common.kafka.claimed_consumer import ClaimedConsumer
from flywheel_common.postgres.idempotency import Idempotency
from flywheel_common.postgres.pool import Pool
from flywheel_common.process.worker import Worker
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.api.answer_encoding import AnswerEncoder
from flywheel_feature.api.convert_training_sets import (
    SKEW_JOB,
    TRAINING_SET_JOB,
    skew_handler,
    training_set_handler,
)
from flywheel_feature.api.servicer import FeatureServicer, add_to_server
from flywheel_feature.api.tensor_encoding import TensorEncoder
from flywheel_feature.config import FeatureSettings, MaterializeSettings
from flywheel_feature.encoding.event_payloads import encode_event
from flywheel_feature.erasure.erase_job import KIND as ERASE
from flywheel_feature.erasure.erase_job import EraseJob
from flywheel_feature.ingest.archive import Archiver
from flywheel_feature.ingest.archive_replay import ArchiveReplay
from flywheel_feature.ingest.due_rows import DueRows
from flywheel_feature.ingest.freshness import FreshnessReader
from flywheel_feature.ingest.freshness_metrics import FreshnessGauges
from flywheel_feature.ingest.generations import Generations
from flywheel_feature.ingest.materialize_job import KIND as MATERIALIZE
from flywheel_feature.ingest.materialize_job import MaterializeJob
from flywheel_feature.ingest.push import Pusher
from flywheel_feature.ingest.push_log import PushLog
from flywheel_feature.ingest.rebuild_job import KIND as REBUILD
from flywheel_feature.ingest.rebuild_job import RebuildJob
from flywheel_feature.ingest.rule_actions import RuleActions
from flywheel_feature.ingest.stream_materialization import StreamMaterializer, TileFiller
from flywheel_feature.ingest.stream_tiles import SourceTiles
from flywheel_feature.ingest.stream_worker import StreamWorker
from flywheel_feature.ingest.tombstones import TombstoneFilter
from flywheel_feature.jobs.runner import JobRunner
from flywheel_feature.offline.build import TrainingSetBuilder
from flywheel_feature.offline.leftovers import Leftovers
from flywheel_feature.offline.partitioned.build import MEBIBYTE, JoinLimits
from flywheel_feature.offline.skew import SkewCheck
from flywheel_feature.online.features import OnlineFeatures
from flywheel_feature.permissions import PERMISSIONS, SERVICE
from flywheel_feature.ports import Ports, StreamPorts, open_ports, open_worker_ports
from flywheel_feature.store.event_history import EventHistory
from flywheel_feature.store.kafka.source_topics import topic_spec

log = get_logger(__name__)

GROUP = "flywheel-feature-materialize"
"""Under this name the stream workers share the partitions, and their poison records are parked."""
HOUSEKEEPING_SECONDS = 3600.0


async def build(settings: FeatureSettings, stack: AsyncExitStack) -> Server:
    """The gRPC service; `stack` closes what it opened, in reverse."""
    return wire(settings, await open_ports(settings, stack))


async def build_worker(settings: MaterializeSettings, stack: AsyncExitStack) -> Worker:
    """The stream worker; `stack` closes what it opened, in reverse."""
    return wire_worker(settings, await open_worker_ports(settings, stack))


def wire(settings: FeatureSettings, ports: Ports) -> Server:
    """The gRPC service on these adapters."""
    ids, clock = SystemIds(), SystemClock()
    push_log = PushLog(ports.push_log, ports.tables, ids.new)
    history = EventHistory(ports.archive, ports.topics, push_log)
    rule_actions = RuleActions(ports.tables)
    materializing = _materialize_job(settings, ports, push_log, rule_actions)
    builder = _training_set_builder(settings, ports, history)
    skew = SkewCheck(catalogs=ports.definitions.current, tables=ports.tables, archive=history, clock=clock)
    freshness = FreshnessReader(ports.online, ports.archive, ports.materialized, ports.topics)

    jobs = JobRunner(ports.jobs, ids, clock.now, concurrency=settings.job_concurrency)
    jobs.register(MATERIALIZE, materializing.run)
    jobs.register(REBUILD, _rebuild_job(ports, materializing).run)
    jobs.register(ERASE, _erase_job(settings, ports).run)
    jobs.register(TRAINING_SET_JOB, training_set_handler(builder))
    jobs.register(SKEW_JOB, skew_handler(skew))

    servicer = FeatureServicer(
        definitions=ports.definitions,
        models=ports.models,
        idempotency=ports.idempotency,
        online=OnlineFeatures(ports.definitions, ports.online, AnswerEncoder),
        tensors=OnlineFeatures(ports.definitions, ports.online, TensorEncoder),
        freshness=freshness,
        pushing=Pusher(
            ports.topics,
            ports.online,
            push_log,
            ports.materialized,
            encode_event,
            rule_actions,
            seen=ports.materialized,
            event_times=EventTimeBound(clock, settings.max_clock_skew_seconds),
        ),
        materializing=materializing,
        builder=builder,
        training_sets=ports.training_sets,
        jobs=jobs,
        object_access=ObjectAccess(ports.join_access, ports.signer, settings.join_url_seconds),
        clock=clock,
        ids=ids,
    )
    server = Server(
        settings,
        servicers=[(add_to_server, servicer)],
        full_service_names=[SERVICE],
        permissions=PERMISSIONS,
        # Lookups need Redis and the definitions in memory only. While PostgreSQL is down, all replicas stay
        # ready, and methods that need it answer UNAVAILABLE.
        readiness=ports.online.ping,
        # Only joins on Ray have tokens of their own; other calls need no further check.
        authenticate=lambda others: (
            WithAttemptTokens(others, ports.tokens) if settings.ray_address else others
        ),
    )
    due_rows = DueRows(ports.materialized, jobs.submit, ports.definitions.projects, clock)
    gauges = FreshnessGauges(freshness, ports.definitions.projects, clock)
    leftovers = Leftovers(
        ports.jobs, TRAINING_SET_JOB, ports.training_sets, ports.tables, ports.engines, clock
    )
    server.add_background("definitions", ports.definitions.follow)
    server.add_background("tombstones", ports.tombstones.follow)
    server.add_background("jobs", jobs.run)
    server.add_background("due-rows", due_rows.run)
    server.add_background("freshness", gauges.run)
    server.add_background("bucket", lambda: _until_done(ports.objects.ensure_bucket), ends=True)
    server.add_background("housekeeping", lambda: _trim_periodically(ports.idempotency))
    server.add_background("leftovers", leftovers.run)
    return server


def wire_worker(settings: MaterializeSettings, ports: StreamPorts) -> Worker:
    """The stream worker on these adapters."""
    tiles = SourceTiles(ports.online)
    tombstones = _tombstone_filter(ports)
    archiver = Archiver(
        ports.archive,
        ports.tables,
        SystemIds().new,
        tombstones,
        ports.objects.delete,
        flush_rows=settings.archive_flush_rows,
        flush_seconds=settings.archive_flush_seconds,
        idle_seconds=settings.archive_idle_seconds,
    )
    generations = Generations(ports.online, ports.generations)
    replay = ArchiveReplay(ports.archive, ports.tables)
    filler = TileFiller(generations, replay, tiles, tombstones)
    materializer = StreamMaterializer(ports.archive, ports.archive, tiles, archiver, filler)
    stream = StreamWorker(
        ports.definitions,
        materializer,
        generations,
        lambda source: topic_spec(source, settings.topic_prefix, settings.kafka_partitions),
        EventTimeBound(SystemClock(), settings.max_clock_skew_seconds),
    )
    worker = Worker(settings)
    worker.add_background("definitions", ports.definitions.follow)
    worker.add_background("tombstones", ports.tombstones.follow)
    worker.add_background("online-store", stream.watch)
    worker.add_background("bucket", lambda: _until_done(ports.objects.ensure_bucket), ends=True)
    worker.add_background("streams", lambda: _consumer(settings, stream, ports.pool).run())
    worker.add_background("archive", archiver.run, stops_last=True)
    return worker


def _tombstone_filter(ports: StreamPorts) -> TombstoneFilter:
    return TombstoneFilter(ports.definitions.catalog, ports.tombstones.of)


def _materialize_job(
    settings: FeatureSettings, ports: Ports, push_log: PushLog, rule_actions: RuleActions
) -> MaterializeJob:
    return MaterializeJob(
        catalogs=ports.definitions.current,
        files=ports.tables,
        seen=ports.materialized,
        pushed=push_log,
        online=ports.online,
        materialized=ports.materialized,
        tombstones=_tombstone_filter(ports),
        rule_actions=rule_actions,
        clock=SystemClock(),
        rows_per_second=settings.materialize_rows_per_second,
    )


def _rebuild_job(ports: Ports, materializing: MaterializeJob) -> RebuildJob:
    generations = Generations(ports.online, ports.generations)
    replay = ArchiveReplay(ports.archive, ports.tables)
    filler = TileFiller(generations, replay, SourceTiles(ports.online), _tombstone_filter(ports))
    return RebuildJob(
        ports.definitions.current,
        ports.definitions.projects,
        generations,
        replay,
        filler,
        materializing,
        ports.materialized,
    )


def _erase_job(settings: FeatureSettings, ports: Ports) -> EraseJob:
    return EraseJob(
        catalogs=ports.definitions.current,
        online=ports.online,
        archive=ports.archive,
        pushes=ports.push_log,
        objects=ports.tables,
        tombstones=ports.tombstones,
        topics=ports.topics,
        training_sets=ports.training_sets,
        clock=SystemClock(),
        new_id=SystemIds().new,
        delete=ports.objects.delete,
        predictions=settings.prediction_log_prefix,
    )


def _training_set_builder(
    settings: FeatureSettings, ports: Ports, history: EventHistory
) -> TrainingSetBuilder:
    return TrainingSetBuilder(
        catalogs=ports.definitions.current,
        tables=ports.tables,
        archive=history,
        training_sets=ports.training_sets,
        clock=SystemClock(),
        engines=ports.engines,
        limits=JoinLimits(settings.join_memory_mebibytes * MEBIBYTE, settings.ray_join_rows),
    )


def _consumer(settings: MaterializeSettings, stream: StreamWorker, pool: Pool) -> ClaimedConsumer:
    consumer = ClaimedConsumer(
        bootstrap=settings.kafka_bootstrap,
        group=settings.topic_prefix + GROUP,
        pool=pool,
        topics=stream.topics,
        begin=stream.begin,
        end=stream.end,
        handler=stream.handle,
        skip=stream.skip,
        batch_records=settings.stream_batch_records,
        session_timeout_seconds=settings.stream_session_seconds,
        member=settings.stream_member,
    )
    stream.attach(consumer)
    return consumer


async def _trim_periodically(idempotency: Idempotency) -> None:
    while True:
        try:
            await idempotency.trim()
        except FlywheelError as error:
            log.warning("housekeeping failed", reason=error.reason)
        await asyncio.sleep(HOUSEKEEPING_SECONDS)


async def _until_done(work: Callable[[], Awaitable[object]]) -> None:
    """Retry start-up work with backoff while a dependency is down."""
    delay = 0.2
    while True:
        try:
            await work()
            return
        except FlywheelError as error:
            if not error.retryable:
                raise
            log.warning("start-up work is retried", reason=error.reason)
        await asyncio.sleep(delay)
        delay = min(delay * 2, 5.0)
