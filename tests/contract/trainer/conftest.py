"""The trainer's stores in memory, in PostgreSQL, and behind gRPC: then what callers do and ask is an RPC through a real channel to the real
servicer, and what the supervisor, the pipeline and the consumer do goes into PostgreSQL behind it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pytest

from flywheel_common.kafka import topics
from flywheel_common.kafka.envelope import build_event
from flywheel_common.kafka.record import Record
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import create_pool, transaction
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_protos.events.v1.lifecycle_pb2 import DriftDetected, TrainingCompleted
from flywheel_protos.trainer.v1 import trainer_pb2_grpc
from flywheel_trainer.api.drift_events import DriftHandler
from flywheel_trainer.api.servicer import TrainerServicer
from flywheel_trainer.config import TrainerSettings
from flywheel_trainer.fakes.feature import MemoryTrainingSets
from flywheel_trainer.fakes.jobs import MemoryJobs
from flywheel_trainer.fakes.pipelines import MemoryPipelines
from flywheel_trainer.fakes.policies import MemoryPolicies
from flywheel_trainer.fakes.runs import MemoryRuns
from flywheel_trainer.fakes.tracking import MemoryTracking
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.jobs.ports import JobStore, TrainingSet
from flywheel_trainer.jobs.use_cases import Jobs
from flywheel_trainer.permissions import PERMISSIONS, SERVICE
from flywheel_trainer.pipelines.ports import PipelineStore
from flywheel_trainer.pipelines.use_cases import Pipelines
from flywheel_trainer.policies.decision import Drift
from flywheel_trainer.policies.ports import PolicyStore
from flywheel_trainer.policies.use_cases import Policies
from flywheel_trainer.runs.ports import RunStore
from flywheel_trainer.runs.use_cases import Runs
from flywheel_trainer.server import MIGRATIONS
from flywheel_trainer.store.postgres.connection import prepare
from flywheel_trainer.store.postgres.jobs import PostgresJobs
from flywheel_trainer.store.postgres.pipelines import PostgresPipelines
from flywheel_trainer.store.postgres.policies import PostgresDecisions, PostgresPolicies
from flywheel_trainer.store.postgres.runs import PostgresRuns
from tests.contract.trainer.adapters import Calls, GrpcJobs, GrpcPipelines, GrpcPolicies, GrpcRuns, Told
from tests.support import serving

TRAINING_SET = "projects/p/trainingSets/t"


@dataclass
class Stores:
    """`decide` is what a drift event does; `completed` are the `training.completed` that went out, in order."""

    runs: RunStore
    jobs: JobStore
    pipelines: PipelineStore
    policies: PolicyStore
    decide: Callable[[Drift, datetime], Awaitable[object]]
    completed: Callable[[], Awaitable[list[TrainingCompleted]]]


def in_memory() -> Stores:
    tracking, pipelines = MemoryTracking(), MemoryPipelines()
    policies = MemoryPolicies(pipelines)

    async def completed() -> list[TrainingCompleted]:
        return [
            TrainingCompleted(
                pipeline_run=str(run.name), model=run.spec.model, model_version=run.model_version,
                succeeded=run.state is JobState.SUCCEEDED, message=message, cause_alert=run.cause_alert,
            )
            for run, message in pipelines.completed
        ]  # fmt: skip

    return Stores(MemoryRuns(tracking), MemoryJobs(tracking), pipelines, policies, policies.decide, completed)


async def in_postgres(stack: AsyncExitStack, dsn: str) -> Stores:
    pool = await stack.enter_async_context(create_pool(dsn, init=prepare))
    await migrate(pool, MIGRATIONS)

    async def decide(drift: Drift, now: datetime) -> None:
        clock = Told()
        clock.at = now
        payload = DriftDetected(
            alert=drift.alert, model=drift.model, kind=drift.kind, data_quality_cause=drift.data_quality_cause
        )
        payload.window_end.FromDatetime(drift.window_end)
        event = build_event(payload, source="test", key=drift.model, event_time=drift.window_end)
        record = Record(topics.DRIFT_DETECTED, 0, 0, event.key, b"", (), 0, event)
        async with transaction(pool) as conn:
            await DriftHandler(PostgresDecisions, clock)(conn, [record])

    async def completed() -> list[TrainingCompleted]:
        rows = await pool.fetch("SELECT topic, value FROM outbox ORDER BY id")
        assert {row["topic"] for row in rows} <= {topics.TRAINING_COMPLETED}
        return [TrainingCompleted.FromString(Event.FromString(row["value"]).payload) for row in rows]

    return Stores(
        PostgresRuns(pool), PostgresJobs(pool), PostgresPipelines(pool), PostgresPolicies(pool), decide, completed
    )  # fmt: skip


async def over_grpc(stack: AsyncExitStack, behind: Stores) -> tuple[Stores, Any]:
    """The stores behind the servicer in its real server, and the stub."""
    told, sets = Told(), MemoryTrainingSets()
    sets.known[TRAINING_SET] = TrainingSet(TRAINING_SET, "s3://b/t", (), 1, "f" * 64, "")
    unused: Any = None  # nothing here starts from weights or watches a log
    servicer = TrainerServicer(
        Runs(behind.runs, told, told),
        Jobs(behind.jobs, sets, unused, unused, told, told),
        Pipelines(behind.pipelines, told, told),
        Policies(behind.policies, told),
        poll_seconds=0.1,
    )
    channel = await serving.served(
        stack, TrainerSettings, trainer_pb2_grpc.add_TrainerServiceServicer_to_server, servicer, service=SERVICE, permissions=PERMISSIONS,
    )  # fmt: skip
    stub = trainer_pb2_grpc.TrainerServiceStub(channel)
    calls = Calls(stub, told)
    stores = replace(
        behind,
        runs=GrpcRuns(calls, behind.runs),
        jobs=GrpcJobs(calls, behind.jobs),
        pipelines=GrpcPipelines(calls, behind.pipelines),
        policies=GrpcPolicies(calls),
    )
    return stores, stub


@pytest.fixture
def way(request: pytest.FixtureRequest) -> tuple[str, str]:
    """memory, postgres or grpc, and a database unless it is memory."""
    dsn = "" if request.param == "memory" else str(request.getfixturevalue("database"))
    return request.param, dsn


@pytest.fixture
async def stores(way: tuple[str, str]) -> AsyncIterator[Stores]:
    """Empty, by the way that the parameter names."""
    kind, dsn = way
    async with AsyncExitStack() as stack:
        found = in_memory() if kind == "memory" else await in_postgres(stack, dsn)
        yield (await over_grpc(stack, found))[0] if kind == "grpc" else found


@pytest.fixture
async def stub(database: str) -> AsyncIterator[Any]:
    """The service alone."""
    async with AsyncExitStack() as stack:
        yield (await over_grpc(stack, await in_postgres(stack, database)))[1]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "without_grpc(why): no RPC does what this law is about")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every law is run over all three, but for one that says why no RPC reaches it."""
    if "way" in metafunc.fixturenames:
        without = metafunc.definition.get_closest_marker("without_grpc")
        marks = [pytest.mark.skip(reason=without.args[0])] if without else []
        kinds = ["memory", "postgres", pytest.param("grpc", marks=marks)]
        metafunc.parametrize("way", kinds, indirect=True)
