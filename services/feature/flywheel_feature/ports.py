"""The adapters of the gRPC service and of the stream worker, opened from their settings."""

from __future__ import annotations

import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from flywheel_common.granted.access import Signer
from flywheel_common.granted.signer import s3_signer
from flywheel_common.granted.tokens import AttemptTokens
from flywheel_common.grpc.channel import channel
from flywheel_common.kafka.producer import Producer
from flywheel_common.postgres.idempotency import Idempotency
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import Pool, create_pool
from flywheel_common.ray.jobs import ray_jobs
from flywheel_common.storage.s3 import S3ObjectStore, arrow_filesystem, object_store
from flywheel_feature.apply.applied import AppliedDefinitions
from flywheel_feature.apply.lineage import Models
from flywheel_feature.config import FeatureSettings, MaterializeSettings
from flywheel_feature.offline.ports import JoinAccess, PartitionEngine
from flywheel_feature.store.engines.process import PartitionProcess
from flywheel_feature.store.engines.ray import PartitionRay
from flywheel_feature.store.grpc.model_uses import NoModels, RegistryModels
from flywheel_feature.store.kafka.source_topics import SourceTopics, topic_name
from flywheel_feature.store.postgres.archive import PostgresArchive
from flywheel_feature.store.postgres.definitions import PostgresDefinitions
from flywheel_feature.store.postgres.generations import PostgresGenerations
from flywheel_feature.store.postgres.jobs import PostgresJobs
from flywheel_feature.store.postgres.join_access import PostgresJoinAccess, read_token_key
from flywheel_feature.store.postgres.materialized import PostgresMaterialized
from flywheel_feature.store.postgres.push_log import PostgresPushLog
from flywheel_feature.store.postgres.tombstones import PostgresTombstones
from flywheel_feature.store.postgres.training_sets import PostgresTrainingSets
from flywheel_feature.store.redis.cluster import ClusterPipe
from flywheel_feature.store.redis.connection import RedisPipe
from flywheel_feature.store.redis.online_store import OnlineStore
from flywheel_feature.store.s3.deletion import S3Deletion
from flywheel_feature.store.s3.table_files import S3TableFiles

MIGRATIONS = Path(__file__).parent / "migrations"


@dataclass(frozen=True)
class StreamPorts:
    """The adapters of the stream worker. One adapter may implement several ports."""

    pool: Pool
    definitions: AppliedDefinitions
    online: OnlineStore
    archive: PostgresArchive
    generations: PostgresGenerations
    tombstones: PostgresTombstones
    tables: S3TableFiles
    objects: S3ObjectStore


@dataclass(frozen=True)
class Ports(StreamPorts):
    """The adapters of the gRPC service."""

    topics: SourceTopics
    push_log: PostgresPushLog
    materialized: PostgresMaterialized
    training_sets: PostgresTrainingSets
    engines: list[PartitionEngine]
    """Where joins can run, the default first."""
    join_access: JoinAccess
    signer: Signer
    tokens: AttemptTokens
    """Of the attempts of joins on Ray."""
    jobs: PostgresJobs
    idempotency: Idempotency
    models: Models


async def open_ports(settings: FeatureSettings, stack: AsyncExitStack) -> Ports:
    """The adapters of the gRPC service."""
    pool = await _database(settings, stack, "flywheel-feature")
    shared = await _stream_ports(settings, stack, pool)
    access, tokens = PostgresJoinAccess(pool), AttemptTokens(await read_token_key(pool))
    return Ports(
        **vars(shared),
        topics=await _topics(settings, stack),
        push_log=PostgresPushLog(pool),
        materialized=PostgresMaterialized(pool),
        training_sets=PostgresTrainingSets(pool),
        engines=await _partition_engines(settings, stack, access, tokens),
        join_access=access,
        signer=await stack.enter_async_context(s3_signer(settings, settings.s3_endpoint)),
        tokens=tokens,
        jobs=PostgresJobs(pool),
        idempotency=Idempotency(pool),
        models=await _models(settings, stack),
    )


async def open_worker_ports(settings: MaterializeSettings, stack: AsyncExitStack) -> StreamPorts:
    """The adapters of the stream worker."""
    pool = await _database(settings, stack, "flywheel-feature-materialize")
    return await _stream_ports(settings, stack, pool)


async def _stream_ports(settings: FeatureSettings, stack: AsyncExitStack, pool: Pool) -> StreamPorts:
    """The adapters that the service and the worker share; definitions and tombstones are read."""
    ports = StreamPorts(
        pool=pool,
        definitions=AppliedDefinitions(PostgresDefinitions(pool)),
        online=await _online_store(settings, stack),
        archive=PostgresArchive(pool, settings.s3_bucket),
        generations=PostgresGenerations(pool),
        tombstones=PostgresTombstones(pool),
        tables=S3TableFiles.from_settings(settings),
        objects=await stack.enter_async_context(object_store(settings)),
    )
    await ports.definitions.refresh()
    await ports.tombstones.refresh()
    return ports


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


async def _partition_engines(
    settings: FeatureSettings, stack: AsyncExitStack, access: JoinAccess, tokens: AttemptTokens
) -> list[PartitionEngine]:
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
        token = settings.ray_auth_token.get_secret_value()
        ray = PartitionRay(
            await stack.enter_async_context(ray_jobs(settings.ray_address, token)),
            python=settings.ray_python,
            files=arrow_filesystem(settings),
            deletion=S3Deletion.from_settings(settings),
            root=f"{settings.s3_bucket}/joins",
            access=access,
            tokens=tokens,
            address=settings.address_of_joins,
            environment={"FLYWHEEL_FEATURE_S3_BUCKET": settings.s3_bucket},
        )
        engines.append(ray)
    return engines
