"""The trainer's stores in memory and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime

import pytest

from flywheel_common.clock import ManualClock
from flywheel_common.granted.access import AttemptAccess
from flywheel_common.kafka import topics
from flywheel_common.kafka.envelope import build_event
from flywheel_common.kafka.record import Record
from flywheel_common.postgres.lease import Lease
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import create_pool, transaction
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_protos.events.v1.lifecycle_pb2 import DriftDetected, TrainingCompleted
from flywheel_trainer.api.drift_events import DriftHandler
from flywheel_trainer.checkpoints.ports import CheckpointStore
from flywheel_trainer.fakes.attempt_access import MemoryAttemptAccess
from flywheel_trainer.fakes.checkpoints import MemoryCheckpoints
from flywheel_trainer.fakes.jobs import MemoryJobs
from flywheel_trainer.fakes.pipeline_definitions import MemoryPipelineDefinitions
from flywheel_trainer.fakes.pipelines import MemoryPipelines
from flywheel_trainer.fakes.policies import MemoryPolicies
from flywheel_trainer.fakes.run_edits import MemoryRunEdits
from flywheel_trainer.fakes.runs import MemoryRuns
from flywheel_trainer.fakes.supervision import MemorySupervision
from flywheel_trainer.fakes.tracking import MemoryTracking
from flywheel_trainer.fakes.trials import MemoryTrials
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.jobs.ports import JobStore, Supervision
from flywheel_trainer.pipelines.cache import StepCache
from flywheel_trainer.pipelines.definition import PipelineDefinitions
from flywheel_trainer.pipelines.ports import PipelineStore
from flywheel_trainer.policies.decision import Drift
from flywheel_trainer.policies.ports import PolicyStore
from flywheel_trainer.runs.ports import RunEdits, RunStore
from flywheel_trainer.server import MIGRATIONS
from flywheel_trainer.store.postgres.attempt_access import PostgresAttemptAccess
from flywheel_trainer.store.postgres.checkpoints import PostgresCheckpoints
from flywheel_trainer.store.postgres.connection import prepare
from flywheel_trainer.store.postgres.jobs import PostgresJobs
from flywheel_trainer.store.postgres.pipeline_definitions import PostgresPipelineDefinitions
from flywheel_trainer.store.postgres.pipelines import PostgresPipelines
from flywheel_trainer.store.postgres.policies import PostgresDecisions, PostgresPolicies
from flywheel_trainer.store.postgres.run_edits import PostgresRunEdits
from flywheel_trainer.store.postgres.runs import PostgresRuns
from flywheel_trainer.store.postgres.supervision import LEASE, PostgresSupervision
from flywheel_trainer.store.postgres.trials import PostgresTrials
from flywheel_trainer.trials.ports import TrialStore


@dataclass
class Stores:
    """The stores of one trainer."""

    runs: RunStore
    run_edits: RunEdits
    jobs: JobStore
    pipelines: PipelineStore
    definitions: PipelineDefinitions
    cache: StepCache
    policies: PolicyStore
    decide: Callable[[Drift, datetime], Awaitable[object]]
    """Consumes a drift event."""
    completed: Callable[[], Awaitable[list[TrainingCompleted]]]
    """The `training.completed` events so far, in order."""
    supervise: Callable[[], Awaitable[Supervision]]
    """Takes the lease of the supervisor from its holder."""
    trials: TrialStore
    checkpoints: CheckpointStore
    access: AttemptAccess


def memory_stores() -> Stores:
    tracking = MemoryTracking()
    pipelines = MemoryPipelines(tracking)
    definitions = MemoryPipelineDefinitions()
    policies = MemoryPolicies(pipelines, definitions)

    async def completed() -> list[TrainingCompleted]:
        return [
            TrainingCompleted(
                pipeline_run=str(run.name),
                model=run.model,
                model_version=run.model_version,
                succeeded=run.state is JobState.SUCCEEDED,
                message=message,
                cause_alert=run.cause_alert,
            )
            for run, message in pipelines.completed
        ]

    tokens = iter(range(1, 1_000))

    async def supervise() -> Supervision:
        return MemorySupervision(tracking, next(tokens))

    runs, edits, jobs = MemoryRuns(tracking), MemoryRunEdits(tracking), MemoryJobs(tracking)
    trials = MemoryTrials(tracking)
    decide = policies.decide
    return Stores(
        runs,
        edits,
        jobs,
        pipelines,
        definitions,
        pipelines,
        policies,
        decide,
        completed,
        supervise,
        trials,
        MemoryCheckpoints(tracking),
        MemoryAttemptAccess(tracking),
    )


async def postgres_stores(stack: AsyncExitStack, dsn: str) -> Stores:
    pool = await stack.enter_async_context(create_pool(dsn, init=prepare))
    await migrate(pool, MIGRATIONS)

    async def decide(drift: Drift, now: datetime) -> None:
        payload = DriftDetected(
            alert=drift.alert,
            model=drift.model,
            kind=drift.kind,
            data_quality_cause=drift.data_quality_cause,
        )
        payload.window_end.FromDatetime(drift.window_end)
        event = build_event(payload, source="test", key=drift.model, event_time=drift.window_end)
        record = Record(topics.DRIFT_DETECTED, 0, 0, event.key, b"", (), 0, event)
        async with transaction(pool) as conn:
            await DriftHandler(PostgresDecisions, ManualClock(now))(conn, [record])

    async def completed() -> list[TrainingCompleted]:
        rows = await pool.fetch("SELECT topic, value FROM outbox ORDER BY id")
        assert {row["topic"] for row in rows} <= {topics.TRAINING_COMPLETED}
        return [TrainingCompleted.FromString(Event.FromString(row["value"]).payload) for row in rows]

    async def supervise() -> Supervision:
        token = await Lease(pool, LEASE, ttl_seconds=600, replace=True).try_acquire()
        assert token is not None
        return PostgresSupervision(pool, token)

    runs, edits, jobs = PostgresRuns(pool), PostgresRunEdits(pool), PostgresJobs(pool)
    pipelines, definitions = PostgresPipelines(pool), PostgresPipelineDefinitions(pool)
    policies, trials = PostgresPolicies(pool), PostgresTrials(pool)
    return Stores(
        runs,
        edits,
        jobs,
        pipelines,
        definitions,
        pipelines,
        policies,
        decide,
        completed,
        supervise,
        trials,
        PostgresCheckpoints(pool),
        PostgresAttemptAccess(pool),
    )


@pytest.fixture(params=["memory", "postgres"])
def dsn(request: pytest.FixtureRequest) -> str:
    """A new database, or "" for stores in memory."""
    return "" if request.param == "memory" else str(request.getfixturevalue("database"))


@pytest.fixture
async def stores(dsn: str) -> AsyncIterator[Stores]:
    """Empty stores."""
    async with AsyncExitStack() as stack:
        yield await postgres_stores(stack, dsn) if dsn else memory_stores()
