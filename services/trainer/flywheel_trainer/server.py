"""The composition root: builds the trainer from its settings."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prometheus_client import REGISTRY, CollectorRegistry

from flywheel_common.clock import Clock, SystemClock
from flywheel_common.errors import FlywheelError
from flywheel_common.granted.access import AttemptAccess, ObjectAccess, Signer
from flywheel_common.granted.signer import s3_signer
from flywheel_common.granted.tokens import AttemptTokens
from flywheel_common.grpc.attempt_tokens import WithAttemptTokens
from flywheel_common.grpc.channel import channel
from flywheel_common.grpc.server import Server
from flywheel_common.ids import Ids, SystemIds, new_id
from flywheel_common.kafka import topics
from flywheel_common.kafka.client import ensure_topics
from flywheel_common.kafka.consumer import ConsumerLoop
from flywheel_common.kafka.outbox import Relay
from flywheel_common.kafka.producer import Producer
from flywheel_common.postgres.lease import Lease
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import Pool, connection, create_pool
from flywheel_common.ray.jobs import ray_jobs
from flywheel_common.storage.objects import ObjectStore
from flywheel_common.storage.s3 import arrow_filesystem, object_store
from flywheel_common.telemetry.logs import get_logger
from flywheel_job.environments.installing import INSTALLER_VARIABLE
from flywheel_job.granted import TOKEN_VARIABLE, TRAINER_VARIABLE
from flywheel_protos.trainer.v1 import trainer_pb2_grpc
from flywheel_trainer.api.drift_events import DriftHandler
from flywheel_trainer.api.servicer import TrainerServicer
from flywheel_trainer.checkpoints.ports import CheckpointStore
from flywheel_trainer.checkpoints.use_cases import JobCheckpoints
from flywheel_trainer.config import TrainerSettings
from flywheel_trainer.encoding.specs import spec_from_step, spec_to_json
from flywheel_trainer.jobs.engine import Engine
from flywheel_trainer.jobs.evaluate import EvaluateKind, EvaluatePeers
from flywheel_trainer.jobs.evaluate_spec import EvaluateSpec
from flywheel_trainer.jobs.export import ExportKind
from flywheel_trainer.jobs.export_spec import ExportSpec
from flywheel_trainer.jobs.kinds import Kinds
from flywheel_trainer.jobs.logs import StoredLogs
from flywheel_trainer.jobs.models import Evaluations, Models, RegistryModels
from flywheel_trainer.jobs.ports import JobStore, Supervision, Weights
from flywheel_trainer.jobs.score import ScoreKind, ScoreSettings
from flywheel_trainer.jobs.score_spec import ScoreSpec
from flywheel_trainer.jobs.scoring_ports import ScoringPeers
from flywheel_trainer.jobs.sources import Sources
from flywheel_trainer.jobs.supervision import Rules, Supervisor
from flywheel_trainer.jobs.train import TrainKind, TrainSettings
from flywheel_trainer.jobs.train_spec import TrainSpec
from flywheel_trainer.jobs.tune import TuneKind
from flywheel_trainer.jobs.tune_spec import TuneSpec
from flywheel_trainer.jobs.use_cases import Jobs
from flywheel_trainer.permissions import PERMISSIONS, SERVICE
from flywheel_trainer.pipelines.cache import StepCache
from flywheel_trainer.pipelines.comparison import TableReader, comparison_with
from flywheel_trainer.pipelines.definition import PipelineDefinitions
from flywheel_trainer.pipelines.execution import Execution
from flywheel_trainer.pipelines.kinds.all import step_kinds as all_step_kinds
from flywheel_trainer.pipelines.ports import FeaturePeer, PipelineStore, RegistryPeer
from flywheel_trainer.pipelines.use_cases import Pipelines
from flywheel_trainer.policies.origin import Origins
from flywheel_trainer.policies.ports import PolicyStore
from flywheel_trainer.policies.timetable import Timetable
from flywheel_trainer.policies.use_cases import Policies
from flywheel_trainer.runs.editing import RunEditing
from flywheel_trainer.runs.lease import LeaseExpiry
from flywheel_trainer.runs.ports import RunEdits, RunStore
from flywheel_trainer.runs.purging import RunPurge
from flywheel_trainer.runs.run_artifacts import RunArtifacts
from flywheel_trainer.runs.use_cases import Runs
from flywheel_trainer.store.dbos.workflows import dbos_workflows
from flywheel_trainer.store.grpc.feature import GrpcFeature
from flywheel_trainer.store.grpc.feature_sets import GrpcFeatureSets
from flywheel_trainer.store.grpc.models import RegisteredModels
from flywheel_trainer.store.grpc.registry import GrpcRegistry
from flywheel_trainer.store.grpc.releases import RegisteredReleases
from flywheel_trainer.store.grpc.weights import RegisteredWeights
from flywheel_trainer.store.postgres.attempt_access import PostgresAttemptAccess
from flywheel_trainer.store.postgres.checkpoints import PostgresCheckpoints
from flywheel_trainer.store.postgres.connection import prepare
from flywheel_trainer.store.postgres.jobs import PostgresJobs
from flywheel_trainer.store.postgres.pipeline_definitions import PostgresPipelineDefinitions
from flywheel_trainer.store.postgres.pipelines import PostgresPipelines
from flywheel_trainer.store.postgres.policies import PostgresDecisions, PostgresPolicies
from flywheel_trainer.store.postgres.replicas import executor_lease, live_executors, read_installation
from flywheel_trainer.store.postgres.run_edits import PostgresRunEdits
from flywheel_trainer.store.postgres.runs import PostgresRuns
from flywheel_trainer.store.postgres.supervision import LEASE, PostgresSupervision
from flywheel_trainer.store.postgres.trials import PostgresTrials
from flywheel_trainer.store.ray.engine import RayEngine
from flywheel_trainer.store.s3.table_shapes import ParquetShapes
from flywheel_trainer.store.s3.tables import ParquetTables
from flywheel_trainer.trials.ports import TrialStore
from flywheel_trainer.trials.use_cases import Trials

log = get_logger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
CLIENT_NAME = "flywheel-trainer"


class WorkflowEngine(Protocol):
    """Executes the steps of accepted pipeline runs durably."""

    async def start_accepted_runs(self, poll_seconds: float) -> None: ...


@dataclass(frozen=True)
class Ports:
    """The adapters that a trainer uses."""

    runs: RunStore
    run_edits: RunEdits
    jobs: JobStore
    pipelines: PipelineStore
    definitions: PipelineDefinitions
    step_cache: StepCache
    policies: PolicyStore
    trials: TrialStore
    checkpoints: CheckpointStore
    access: AttemptAccess
    signer: Signer
    engine: Engine
    objects: ObjectStore
    tables: TableReader
    feature: FeaturePeer
    registry: RegistryPeer
    weights: Weights
    scoring: ScoringPeers
    models: RegistryModels
    evaluations: Evaluations
    workflows: Callable[[Execution, PipelineStore], AbstractAsyncContextManager[WorkflowEngine]]
    supervision: Callable[[int], Supervision]
    """The jobs under the fencing token of a supervisor."""
    run_in_one_replica: Callable[[Callable[[int], Awaitable[None]]], Awaitable[None]]
    """Runs a function forever, in one replica at a time, with its fencing token."""
    tokens: AttemptTokens
    keep_alive: Callable[[], Awaitable[None]]
    """Tells the other replicas that this one is alive, forever."""
    is_ready: Callable[[], Awaitable[bool]]
    prepare_objects: Callable[[], Awaitable[None]]
    """Makes the object store writable."""
    relay_events: Callable[[], Awaitable[None]]
    """Sends stored events to Kafka, forever."""
    consume_drift: Callable[[], Awaitable[None]] | None
    """Handles drift events, forever; None: this replica does not."""


async def build(settings: TrainerSettings, stack: AsyncExitStack) -> Server:
    """A trainer that is ready to `run_until_signal`. Migrates the database first."""
    pool = await stack.enter_async_context(
        create_pool(
            settings.dsn,
            application_name=CLIENT_NAME,
            max_size=settings.postgres_pool_size,
            statement_timeout_seconds=settings.postgres_statement_timeout_seconds,
            init=prepare,
        )
    )
    await migrate(pool, MIGRATIONS)
    installation = await read_installation(pool)
    replica = new_id()
    alive = executor_lease(pool, replica)
    # Before the first workflow starts: without the lease another replica would take it over.
    await alive.try_acquire()
    objects = await stack.enter_async_context(object_store(settings))
    signer = await stack.enter_async_context(s3_signer(settings, settings.endpoint_of_jobs))
    ray = await stack.enter_async_context(
        ray_jobs(settings.ray_address, settings.ray_auth_token.get_secret_value())
    )
    token = settings.service_token.get_secret_value()
    feature_channel = await stack.enter_async_context(
        channel(settings.feature_address, client_name=CLIENT_NAME, token=token)
    )
    registry_channel = await stack.enter_async_context(
        channel(settings.registry_address, client_name=CLIENT_NAME, token=token)
    )
    registry = GrpcRegistry(registry_channel)
    producer = await stack.enter_async_context(Producer(settings.kafka_bootstrap, client_id=CLIENT_NAME))
    clock = SystemClock()
    files = functools.cache(lambda: arrow_filesystem(settings))
    ports = Ports(
        runs=PostgresRuns(pool),
        run_edits=PostgresRunEdits(pool),
        jobs=PostgresJobs(pool),
        pipelines=PostgresPipelines(pool),
        definitions=PostgresPipelineDefinitions(pool),
        step_cache=PostgresPipelines(pool),
        policies=PostgresPolicies(pool),
        trials=PostgresTrials(pool),
        checkpoints=PostgresCheckpoints(pool),
        access=PostgresAttemptAccess(pool),
        signer=signer,
        engine=RayEngine(ray, installation.id),
        objects=objects,
        tables=ParquetTables(files),
        feature=GrpcFeature(feature_channel),
        registry=registry,
        weights=RegisteredWeights(registry, objects, settings.s3_bucket),
        scoring=ScoringPeers(
            GrpcFeature(feature_channel),
            RegisteredReleases(registry_channel, registry, objects, settings.s3_bucket),
            GrpcFeatureSets(feature_channel),
            ParquetShapes(files),
        ),
        models=RegisteredModels(registry, objects, settings.s3_bucket),
        evaluations=registry,
        workflows=lambda execution, store: dbos_workflows(
            execution,
            store,
            dsn=settings.workflow_database,
            executor_id=replica,
            version=settings.pipeline_version,
            live_executors=lambda: live_executors(pool),
        ),
        supervision=lambda token: PostgresSupervision(pool, token),
        run_in_one_replica=Lease(pool, LEASE, holder=replica).run,
        tokens=AttemptTokens(installation.token_key),
        keep_alive=lambda: alive.run(_forever),
        is_ready=lambda: _database_answers(pool),
        prepare_objects=objects.ensure_bucket,
        relay_events=Relay(pool, producer).run,
        consume_drift=(lambda: _consume(settings, pool, clock)) if settings.consume_drift else None,
    )
    return await wire(settings, stack, ports, clock=clock, ids=SystemIds())


async def wire(
    settings: TrainerSettings,
    stack: AsyncExitStack,
    ports: Ports,
    *,
    clock: Clock,
    ids: Ids,
    prometheus: CollectorRegistry = REGISTRY,
) -> Server:
    """The trainer over these ports; `stack` stops its workflows."""
    runs = Runs(ports.runs, ids, clock)
    lease_expiry = LeaseExpiry(ports.runs, clock)
    train = TrainSettings(
        settings.s3_bucket, settings.job_python, settings.metrics_address, settings.cpus_per_worker
    )
    sources = Sources(ports.objects)
    score = ScoreSettings(train, settings.cached_predictions_url.get_secret_value())
    train_kind = TrainKind(ports.feature, ports.weights, ports.models, sources, train)
    models = Models(ports.models, ports.runs, ports.objects, settings.s3_bucket)
    evaluated = EvaluatePeers(ports.feature, models, ports.evaluations, ports.objects)
    kinds: Kinds = {
        TrainSpec.KIND: train_kind,
        TuneSpec.KIND: TuneKind(train_kind),
        EvaluateSpec.KIND: EvaluateKind(evaluated, train),
        ExportSpec.KIND: ExportKind(ports.feature, models, train),
        ScoreSpec.KIND: ScoreKind(ports.scoring, score, clock),
    }
    logs = StoredLogs(ports.objects)
    jobs = Jobs(ports.jobs, kinds, ports.engine, settings.quota_of, logs, ids, clock)
    rules = job_rules(settings, ports.tokens)

    async def supervise(token: int) -> None:
        store = ports.supervision(token)
        supervisor = Supervisor(store, ports.engine, ports.objects, kinds, rules, clock)
        await supervisor.run(settings.job_poll_seconds, jobs.queued)

    step_kinds = all_step_kinds(
        feature=ports.feature,
        registry=ports.registry,
        weights=ports.weights,
        jobs=jobs,
        runs=runs,
        objects=ports.objects,
        compare=comparison_with(ports.tables),
        parse_job=spec_from_step,
    )
    pipelines = Pipelines(ports.pipelines, ports.definitions, step_kinds, spec_to_json, ids, clock)
    policies = Policies(ports.policies, ports.definitions, clock)
    execution = Execution(
        ports.pipelines, step_kinds, ports.step_cache, clock, settings.pipeline_poll_seconds
    )
    workflows = await stack.enter_async_context(ports.workflows(execution, ports.pipelines))
    origins = Origins(ports.registry, ports.feature, ports.runs, ports.pipelines, ports.policies)
    trials = Trials(ports.trials, jobs, runs, ports.objects, ports.feature, ports.registry, clock)
    servicer = TrainerServicer(
        runs,
        jobs,
        sources,
        pipelines,
        policies,
        origins,
        trials,
        checkpoints=JobCheckpoints(ports.checkpoints, jobs, settings.s3_bucket, clock),
        run_editing=RunEditing(ports.run_edits, clock),
        run_artifacts=RunArtifacts(
            ports.runs, ports.run_edits, ports.objects, settings.s3_bucket, ids, clock
        ),
        object_access=ObjectAccess(ports.access, ports.signer, settings.job_url_seconds),
        run_purge=RunPurge(ports.run_edits, ports.objects, settings.s3_bucket, clock),
        poll_seconds=settings.watch_poll_seconds,
    )
    server = Server(
        settings,
        servicers=[(trainer_pb2_grpc.add_TrainerServiceServicer_to_server, servicer)],
        full_service_names=[SERVICE],
        permissions=PERMISSIONS,
        readiness=ports.is_ready,
        registry=prometheus,
        authenticate=lambda others: WithAttemptTokens(others, ports.tokens),
    )
    server.add_background("replica", ports.keep_alive)
    server.add_background("job supervisor", lambda: ports.run_in_one_replica(supervise))
    server.add_background("pipelines", lambda: workflows.start_accepted_runs(settings.pipeline_poll_seconds))
    timetable = Timetable(ports.policies, clock)
    server.add_background("retraining times", lambda: timetable.run(settings.schedule_poll_seconds))
    server.add_background("run leases", lambda: lease_expiry.run(settings.lease_check_seconds))
    server.add_background("bucket", lambda: _ensure_bucket(ports.prepare_objects), ends=True)
    if ports.consume_drift is not None:
        server.add_background("drift", ports.consume_drift)
    server.add_background("outbox relay", ports.relay_events, stops_last=True)
    return server


def job_rules(settings: TrainerSettings, tokens: AttemptTokens) -> Rules:
    """How attempts of jobs are started."""
    common = {
        TRAINER_VARIABLE: settings.metrics_address,
        INSTALLER_VARIABLE: settings.job_uv,
        "RAY_TRAIN_V2_ENABLED": "1",
        "PYTHONWARNINGS": "ignore",
        **settings.job_environment,
    }
    return Rules(
        bucket=settings.s3_bucket,
        python=settings.job_python,
        environment_of=lambda engine_id: {**common, TOKEN_VARIABLE: tokens.issue(engine_id)},
        max_running=settings.max_running_jobs,
        quota_of=settings.quota_of,
    )


async def _forever(_token: int) -> None:
    await asyncio.Event().wait()


async def migrate_database(settings: TrainerSettings) -> int:
    """Apply missing migrations and return their number."""
    async with create_pool(settings.dsn, application_name=CLIENT_NAME, max_size=2) as pool:
        return await migrate(pool, MIGRATIONS)


async def _ensure_bucket(prepare: Callable[[], Awaitable[None]]) -> None:
    """Retry until the bucket exists: without the object store jobs wait, but the trainer starts."""
    while True:
        try:
            await prepare()
            return
        except FlywheelError as error:
            log.warning("bucket not checked", reason=error.reason, error=error.message)
            await asyncio.sleep(2)


async def _database_answers(pool: Pool) -> bool:
    async with connection(pool) as conn:
        return bool(await conn.fetchval("SELECT true"))


async def _consume(settings: TrainerSettings, pool: Pool, clock: Clock) -> None:
    while True:
        try:
            specs = [
                topics.TopicSpec(name, settings.kafka_partitions)
                for name in (settings.drift_topic, topics.TRAINING_COMPLETED)
            ]
            await ensure_topics(settings.kafka_bootstrap, specs)
            break
        except FlywheelError as error:
            log.warning("drift events not consumed", reason=error.reason)
            await asyncio.sleep(2)
    await ConsumerLoop(
        bootstrap=settings.kafka_bootstrap,
        group=settings.consumer_group,
        topics=[settings.drift_topic],
        handler=DriftHandler(PostgresDecisions, clock),
        pool=pool,
        dedupe=True,
    ).run()
