"""Builds the feature service: the only place that knows which implementation stands behind which port."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from flywheel_common.clock import SystemClock
from flywheel_common.errors import FlywheelError
from flywheel_common.grpc.channel import channel
from flywheel_common.grpc.server import Server
from flywheel_common.ids import SystemIds
from flywheel_common.kafka.consumer import ConsumerLoop
from flywheel_common.kafka.producer import Producer
from flywheel_common.kafka.topics import feature_source
from flywheel_common.postgres.idempotency import Idempotency
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import Pool, create_pool
from flywheel_common.process.worker import Worker
from flywheel_common.ray.jobs import ray_jobs
from flywheel_common.storage.s3 import arrow_filesystem, object_store
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.api import convert_training_sets
from flywheel_feature.api.answer_encoding import AnswerEncoder
from flywheel_feature.api.servicer import FeatureServicer, add_to_server
from flywheel_feature.apply.applied import AppliedDefinitions
from flywheel_feature.apply.lineage import Models
from flywheel_feature.config import FeatureSettings, MaterializeSettings
from flywheel_feature.encoding import event_payloads
from flywheel_feature.erasure.erase_job import KIND as ERASE
from flywheel_feature.erasure.erase_job import EraseJob
from flywheel_feature.ingest.archive import Archiver
from flywheel_feature.ingest.archive_replay import ArchiveReplay
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
from flywheel_feature.offline.ports import PartitionEngine
from flywheel_feature.offline.skew import SkewCheck
from flywheel_feature.online.features import OnlineFeatures
from flywheel_feature.permissions import PERMISSIONS, SERVICE
from flywheel_feature.store.engines.process import PartitionProcess
from flywheel_feature.store.engines.ray import PartitionRay
from flywheel_feature.store.grpc.model_uses import NoModels, RegistryModels
from flywheel_feature.store.kafka.source_topics import SourceTopics
from flywheel_feature.store.postgres.archive import PostgresArchive
from flywheel_feature.store.postgres.definitions import PostgresDefinitions
from flywheel_feature.store.postgres.generations import PostgresGenerations
from flywheel_feature.store.postgres.jobs import PostgresJobs
from flywheel_feature.store.postgres.materialized import PostgresMaterialized
from flywheel_feature.store.postgres.push_log import PostgresPushLog
from flywheel_feature.store.postgres.tombstones import PostgresTombstones
from flywheel_feature.store.postgres.training_sets import PostgresTrainingSets
from flywheel_feature.store.redis.cluster import ClusterPipe
from flywheel_feature.store.redis.connection import RedisPipe
from flywheel_feature.store.redis.online_store import OnlineStore
from flywheel_feature.store.s3.deletion import S3Deletion
from flywheel_feature.store.s3.table_files import S3TableFiles

log = get_logger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
GROUP = "flywheel-feature-materialize"
HOUSEKEEPING_SECONDS = 3600.0


async def build(settings: FeatureSettings, stack: AsyncExitStack) -> Server:
    """The gRPC service; `stack` closes what it opened, in reverse."""
    clock, ids = SystemClock(), SystemIds()
    pool = await _database(settings, stack, "flywheel-feature")
    definitions = AppliedDefinitions(PostgresDefinitions(pool))
    await definitions.refresh()
    store = await _online_store(settings, stack)
    topics = await _topics(settings, stack)
    tables = _tables(settings)
    archive = PostgresArchive(pool, settings.s3_bucket)
    pushed = PostgresPushLog(pool)
    push_log = PushLog(pushed, tables, ids.new)
    history = History(archive, topics, push_log)
    materialized = PostgresMaterialized(pool)
    objects = await stack.enter_async_context(object_store(settings))
    stones = PostgresTombstones(pool)
    await stones.refresh()
    erased = TombstoneFilter(definitions.catalog, stones.of)
    generations, replay, filling = _filling(pool, store, archive, tables, SourceTiles(store), erased)
    training_sets = PostgresTrainingSets(pool)
    engines = await _partition_engines(settings, stack)
    builder = TrainingSetBuilder(
        catalogs=definitions.current,
        tables=tables,
        archive=history,
        training_sets=training_sets,
        clock=clock,
        engines=engines,
        limits=JoinLimits(settings.join_memory_mebibytes * MEBIBYTE, settings.ray_join_rows),
    )
    skew = SkewCheck(catalogs=definitions.current, tables=tables, archive=history, clock=clock)
    validating = RuleActions(tables)
    materializing = MaterializeJob(
        catalogs=definitions.current,
        files=tables,
        seen=materialized,
        pushed=push_log,
        online=store,
        materialized=materialized,
        tombstones=erased,
        rule_actions=validating,
        clock=clock,
        rows_per_second=settings.materialize_rows_per_second,
    )
    rebuilding = RebuildJob(
        definitions.current, definitions.projects, generations, replay, filling, materializing, materialized
    )
    erasing = EraseJob(
        catalogs=definitions.current,
        online=store,
        archive=archive,
        pushes=pushed,
        objects=tables,
        tombstones=stones,
        topics=topics,
        training_sets=training_sets,
        clock=clock,
        new_id=ids.new,
        delete=objects.delete,
        predictions=settings.prediction_log_prefix,
    )
    job_store = PostgresJobs(pool)
    jobs = JobRunner(job_store, ids, clock.now, concurrency=settings.job_concurrency)
    jobs.register(MATERIALIZE, materializing.run)
    jobs.register(REBUILD, rebuilding.run)
    jobs.register(ERASE, erasing.run)
    jobs.register(convert_training_sets.TRAINING_SET_JOB, convert_training_sets.training_set_handler(builder))
    jobs.register(convert_training_sets.SKEW_JOB, convert_training_sets.skew_handler(skew))
    leftovers = Leftovers(
        job_store, convert_training_sets.TRAINING_SET_JOB, training_sets, tables, engines, clock
    )
    idempotency = Idempotency(pool)
    freshness = FreshnessReader(store, archive, materialized, topics)
    gauges = FreshnessGauges(freshness, definitions.projects, clock)
    servicer = FeatureServicer(
        definitions=definitions,
        idempotency=idempotency,
        online=OnlineFeatures(definitions, store, AnswerEncoder),
        pushing=Pusher(topics, store, push_log, materialized, _encode_event, validating),
        materializing=materializing,
        freshness=freshness,
        jobs=jobs,
        models=await _models(settings, stack),
        clock=clock,
        builder=builder,
        training_sets=training_sets,
        ids=ids,
    )

    async def ready() -> bool:
        # Features are read from Redis by the definitions in memory: a replica that can do that keeps its traffic while PostgreSQL is
        # away (all replicas would lose it together), and what does need the database answers UNAVAILABLE by itself.
        return await store.ping()

    server = Server(
        settings,
        servicers=[(add_to_server, servicer)],
        full_service_names=[SERVICE],
        permissions=PERMISSIONS,
        readiness=ready,
    )

    async def housekeeping() -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            try:
                await idempotency.trim()
            except FlywheelError as error:
                log.warning("housekeeping put off", reason=error.reason)

    server.add_background("definitions", definitions.follow)
    server.add_background("tombstones", stones.follow)
    server.add_background("jobs", jobs.run)
    server.add_background("freshness", gauges.run)
    server.add_background("bucket", lambda: _until_done(objects.ensure_bucket))
    server.add_background("housekeeping", housekeeping)
    server.add_background("leftovers", leftovers.run)
    return server


async def build_worker(settings: MaterializeSettings, stack: AsyncExitStack) -> Worker:
    """The stream worker: tiles and archive."""
    ids = SystemIds()
    pool = await _database(settings, stack, "flywheel-feature-materialize")
    definitions = AppliedDefinitions(PostgresDefinitions(pool))
    await definitions.refresh()
    store = await _online_store(settings, stack)
    archive = PostgresArchive(pool, settings.s3_bucket)
    objects = await stack.enter_async_context(object_store(settings))
    tables, tiles = _tables(settings), SourceTiles(store)
    stones = PostgresTombstones(pool)
    await stones.refresh()
    erased = TombstoneFilter(definitions.catalog, stones.of)
    archiver = Archiver(
        archive,
        tables,
        ids.new,
        erased,
        objects.delete,
        flush_rows=settings.archive_flush_rows,
        flush_seconds=settings.archive_flush_seconds,
        idle_seconds=settings.archive_idle_seconds,
    )
    generations, _, filling = _filling(pool, store, archive, tables, tiles, erased)
    materializer = StreamMaterializer(archive, archive, tiles, archiver, filling)
    prefix = settings.topic_prefix
    stream = StreamWorker(definitions, materializer, generations, lambda p, s: prefix + topic_name(p, s))
    loop = ConsumerLoop(
        handler=stream.handle,
        positions=stream.positions,
        commit_to_kafka=False,
        bootstrap=settings.kafka_bootstrap,
        group=prefix + GROUP,
        batch_records=settings.stream_batch_records,
        session_timeout_seconds=settings.stream_session_seconds,
        member=settings.stream_member,
        pattern="^" + (prefix + feature_source("")).replace(".", r"\.") + ".+",
    )
    stream.attach(loop)
    worker = Worker(settings)
    worker.add_background("definitions", definitions.follow)
    worker.add_background("tombstones", stones.follow)
    worker.add_background("online-store", stream.watch)
    worker.add_background("bucket", lambda: _until_done(objects.ensure_bucket))
    worker.add_background("streams", loop.run)
    worker.add_background("archive", archiver.run)
    return worker


def topic_name(project: str, source: str) -> str:
    """The default project's topics carry the source's id alone."""
    return feature_source(source if project == "default" else f"{project}.{source}")


class History:
    """The archive and where its topics end (port: offline.ports.Archive)."""

    def __init__(self, archive: PostgresArchive, topics: SourceTopics, pushes: PushLog) -> None:
        self.segments = archive.segments
        self.archived_offsets = archive.archived_offsets
        self.end_offsets = topics.end_offsets
        self.pushed_uris = pushes.pushed_uris


def _filling(
    pool: Pool,
    store: OnlineStore,
    archive: PostgresArchive,
    tables: S3TableFiles,
    tiles: SourceTiles,
    erased: TombstoneFilter,
) -> tuple[Generations, ArchiveReplay, TileFiller]:
    generations = Generations(store, PostgresGenerations(pool))
    replay = ArchiveReplay(archive, tables)
    return generations, replay, TileFiller(generations, replay, tiles, erased)


def _encode_event(source, columns, event_ids, partition) -> bytes:  # type: ignore[no-untyped-def]
    return event_payloads.to_event(source, columns, event_ids, partition).SerializeToString()


async def _database(settings: FeatureSettings, stack: AsyncExitStack, name: str) -> Pool:
    pool = await stack.enter_async_context(
        create_pool(
            settings.dsn,
            application_name=name,
            max_size=settings.postgres_pool_size,
            statement_timeout_seconds=settings.postgres_statement_timeout_seconds,
        )
    )
    await migrate(pool, MIGRATIONS)
    return pool


async def _online_store(settings: FeatureSettings, stack: AsyncExitStack) -> OnlineStore:
    clustered = settings.redis.split("://", 1)[0].endswith("+cluster")
    pipe = ClusterPipe(settings.redis) if clustered else RedisPipe(settings.redis)
    stack.push_async_callback(pipe.close)
    return OnlineStore(pipe)


async def _topics(settings: FeatureSettings, stack: AsyncExitStack) -> SourceTopics:
    producer = Producer(settings.kafka_bootstrap, client_id="flywheel-feature")
    stack.push_async_callback(producer.close)
    topics = SourceTopics(
        settings.kafka_bootstrap,
        producer,
        topic_of=lambda p, s: settings.topic_prefix + topic_name(p, s),
        partitions=settings.kafka_partitions,
    )
    stack.push_async_callback(topics.close)
    return topics


async def _models(settings: FeatureSettings, stack: AsyncExitStack) -> Models:
    if not settings.registry_address:
        return NoModels()
    token = settings.service_token.get_secret_value()
    opened = channel(settings.registry_address, client_name="flywheel-feature", token=token)
    return RegistryModels(await stack.enter_async_context(opened))


def _tables(settings: FeatureSettings) -> S3TableFiles:
    return S3TableFiles(
        endpoint=settings.s3_endpoint,
        access_key=settings.s3_access_key.get_secret_value(),
        secret_key=settings.s3_secret_key.get_secret_value(),
        bucket=settings.s3_bucket,
    )


async def _partition_engines(settings: FeatureSettings, stack: AsyncExitStack) -> list[PartitionEngine]:
    environment = {
        "FLYWHEEL_FEATURE_S3_ENDPOINT": settings.s3_endpoint,
        "FLYWHEEL_FEATURE_S3_ACCESS_KEY": settings.s3_access_key.get_secret_value(),
        "FLYWHEEL_FEATURE_S3_SECRET_KEY": settings.s3_secret_key.get_secret_value(),
        "FLYWHEEL_FEATURE_S3_BUCKET": settings.s3_bucket,
        "FLYWHEEL_FEATURE_S3_REGION": settings.s3_region,
        "AWS_REQUEST_CHECKSUM_CALCULATION": "WHEN_REQUIRED",
    }
    spill = settings.spill_directory or str(Path(tempfile.gettempdir()) / "flywheel-feature")
    engines: list[PartitionEngine] = [PartitionProcess(spill, environment)]
    if settings.ray_address:
        ray = PartitionRay(
            await stack.enter_async_context(
                ray_jobs(settings.ray_address, settings.ray_auth_token.get_secret_value())
            ),
            python=settings.ray_python,
            files=arrow_filesystem(settings),
            deletion=S3Deletion(
                settings.s3_endpoint,
                settings.s3_access_key.get_secret_value(),
                settings.s3_secret_key.get_secret_value(),
            ),
            root=f"{settings.s3_bucket}/joins",
            environment=environment,
        )
        engines.append(ray)
    return engines


async def _until_done(work: Callable[[], Awaitable[object]]) -> None:
    """Again and again while a dependency is away."""
    delay = 0.2
    while True:
        try:
            await work()
            return
        except FlywheelError as error:
            if not error.retryable:
                raise
            log.warning("start-up work waits", reason=error.reason)
        await asyncio.sleep(delay)
        delay = min(delay * 2, 5.0)
