"""Wiring: the one place where things are built and closed."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from flywheel_common.clock import Clock, SystemClock
from flywheel_common.errors import FlywheelError
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
from flywheel_common.postgres.pool import Pool, connection, create_pool
from flywheel_common.ray.jobs import ray_jobs
from flywheel_common.storage.s3 import S3ObjectStore, arrow_filesystem, object_store
from flywheel_common.telemetry.logs import get_logger
from flywheel_protos.trainer.v1 import trainer_pb2_grpc
from flywheel_trainer.api.drift_events import DriftHandler
from flywheel_trainer.api.servicer import TrainerServicer
from flywheel_trainer.config import TrainerSettings
from flywheel_trainer.jobs.logs import KeptLogs
from flywheel_trainer.jobs.supervision import Launch, Supervisor
from flywheel_trainer.jobs.use_cases import Jobs
from flywheel_trainer.permissions import PERMISSIONS, SERVICE
from flywheel_trainer.pipelines.comparison import comparing
from flywheel_trainer.pipelines.steps import Pipeline
from flywheel_trainer.pipelines.use_cases import Pipelines
from flywheel_trainer.policies.use_cases import Policies
from flywheel_trainer.runs.use_cases import Runs
from flywheel_trainer.store.dbos.workflows import durable
from flywheel_trainer.store.grpc.feature import GrpcFeature
from flywheel_trainer.store.grpc.registry import GrpcRegistry
from flywheel_trainer.store.grpc.weights import RegisteredWeights
from flywheel_trainer.store.postgres.connection import prepare
from flywheel_trainer.store.postgres.jobs import PostgresJobs
from flywheel_trainer.store.postgres.pipelines import PostgresPipelines
from flywheel_trainer.store.postgres.policies import PostgresDecisions, PostgresPolicies
from flywheel_trainer.store.postgres.runs import PostgresRuns
from flywheel_trainer.store.ray.engine import RayEngine
from flywheel_trainer.store.s3.tables import ParquetTables

log = get_logger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"


async def build(settings: TrainerSettings, stack: AsyncExitStack) -> Server:
    """Everything that `serve` runs. Migrates the database first."""
    clock, ids = SystemClock(), SystemIds()
    pool = await stack.enter_async_context(
        create_pool(
            settings.dsn,
            application_name="flywheel-trainer",
            max_size=settings.postgres_pool_size,
            statement_timeout_seconds=settings.postgres_statement_timeout_seconds,
            init=prepare,
        )
    )
    await migrate(pool, MIGRATIONS)
    objects = await stack.enter_async_context(object_store(settings))
    engine = RayEngine(
        await stack.enter_async_context(
            ray_jobs(settings.ray_address, settings.ray_auth_token.get_secret_value())
        )
    )
    token = settings.service_token.get_secret_value()
    feature = GrpcFeature(
        await stack.enter_async_context(
            channel(settings.feature_address, client_name="flywheel-trainer", token=token)
        )
    )
    registry = GrpcRegistry(
        await stack.enter_async_context(
            channel(settings.registry_address, client_name="flywheel-trainer", token=token)
        )
    )
    weights = RegisteredWeights(registry, objects, settings.s3_bucket)
    job_store, pipeline_store = PostgresJobs(pool), PostgresPipelines(pool)
    runs = Runs(PostgresRuns(pool), ids, clock)
    jobs = Jobs(job_store, feature, weights, KeptLogs(objects, engine), ids, clock)
    pipelines = Pipelines(pipeline_store, ids, clock)
    policies = Policies(PostgresPolicies(pool), clock)
    pipeline = Pipeline(
        store=pipeline_store,
        feature=feature,
        registry=registry,
        jobs=jobs,
        runs=runs,
        objects=objects,
        compare=comparing(ParquetTables(arrow_filesystem(settings))),
        clock=clock,
        poll_seconds=settings.pipeline_poll_seconds,
    )
    workflows = await stack.enter_async_context(
        durable(
            pipeline,
            pipeline_store,
            dsn=settings.workflow_database,
            executor_id=settings.executor_id,
            version=settings.pipeline_version,
        )
    )
    producer = await stack.enter_async_context(
        Producer(settings.kafka_bootstrap, client_id="flywheel-trainer")
    )
    server = Server(
        settings,
        servicers=[
            (
                trainer_pb2_grpc.add_TrainerServiceServicer_to_server,
                TrainerServicer(runs, jobs, pipelines, policies, poll_seconds=settings.watch_poll_seconds),
            )
        ],
        full_service_names=[SERVICE],
        permissions=PERMISSIONS,
        readiness=lambda: _database_answers(pool),
    )
    supervisor = Supervisor(job_store, engine, objects, launch(settings), clock)
    supervising = Lease(pool, "job-supervisor", holder=settings.executor_id)
    server.add_background(
        "job supervisor", lambda: supervising.run(lambda _: supervisor.run(settings.job_poll_seconds))
    )
    server.add_background("bucket", lambda: _make_bucket(objects))
    server.add_background("pipelines", lambda: workflows.drive(settings.pipeline_poll_seconds))
    server.add_background("run leases", lambda: _expire(runs, settings.lease_check_seconds, clock))
    server.add_background("outbox relay", Relay(pool, producer).run)
    if settings.consume_drift:
        consumer = ConsumerLoop(
            bootstrap=settings.kafka_bootstrap,
            group=settings.consumer_group,
            topics=[settings.drift_topic],
            handler=DriftHandler(PostgresDecisions, clock),
            pool=pool,
            dedupe=True,
        )
        server.add_background("drift", lambda: _consume(settings, consumer))
    return server


def launch(settings: TrainerSettings) -> Launch:
    """How jobs are started."""
    return Launch(
        bucket=settings.s3_bucket,
        python=settings.job_python,
        environment={
            "AWS_ENDPOINT_URL": settings.job_s3_endpoint or settings.s3_endpoint,
            "AWS_ACCESS_KEY_ID": settings.s3_access_key.get_secret_value(),
            "AWS_SECRET_ACCESS_KEY": settings.s3_secret_key.get_secret_value(),
            "AWS_REGION": settings.s3_region,
            "AWS_REQUEST_CHECKSUM_CALCULATION": "WHEN_REQUIRED",
            "AWS_EC2_METADATA_DISABLED": "true",
            "RAY_TRAIN_V2_ENABLED": "1",
            "PYTHONWARNINGS": "ignore",
        },
        metrics_address=settings.trainer_address or settings.listen,
        cpus_per_worker=settings.cpus_per_worker,
        max_running=settings.max_running_jobs,
    )


async def migrate_database(settings: TrainerSettings) -> int:
    """Apply missing migrations; answers how many."""
    async with create_pool(settings.dsn, application_name="flywheel-trainer", max_size=2) as pool:
        return await migrate(pool, MIGRATIONS)


async def _make_bucket(objects: S3ObjectStore) -> None:
    """Asked until it is there: an object store that is away, or hangs, delays jobs, not the start."""
    while True:
        try:
            await objects.ensure_bucket()
            return
        except FlywheelError as error:
            log.warning("bucket not checked", reason=error.reason, error=error.message)
            await asyncio.sleep(2)


async def _database_answers(pool: Pool) -> bool:
    async with connection(pool) as conn:
        return bool(await conn.fetchval("SELECT true"))


async def _expire(runs: Runs, every_seconds: float, clock: Clock) -> None:
    while True:
        try:
            for name in await runs.expire_silent():
                log.warning("run lost", run=name)
        except FlywheelError as error:
            log.warning("leases wait", reason=error.reason)
        await clock.sleep(every_seconds)


async def _consume(settings: TrainerSettings, consumer: ConsumerLoop) -> None:
    while True:
        try:
            wanted = [
                topics.TopicSpec(name, settings.kafka_partitions)
                for name in (settings.drift_topic, topics.TRAINING_COMPLETED)
            ]
            await ensure_topics(settings.kafka_bootstrap, wanted)
            break
        except FlywheelError as error:
            log.warning("drift events wait", reason=error.reason)
            await asyncio.sleep(2)
    await consumer.run()
