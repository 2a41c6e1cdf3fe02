"""The trainer as a process, and in the test's process over adapters in memory."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from flywheel_common.clock import ManualClock
from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_common.granted.access import Signer
from flywheel_common.granted.tokens import AttemptTokens
from flywheel_common.grpc.channel import channel
from flywheel_common.ids import SequentialIds
from flywheel_protos.trainer.v1 import trainer_pb2_grpc
from flywheel_trainer.config import TrainerSettings
from flywheel_trainer.fakes.attempt_access import MemoryAttemptAccess, MemorySigner
from flywheel_trainer.fakes.checkpoints import MemoryCheckpoints
from flywheel_trainer.fakes.engine import MemoryEngine
from flywheel_trainer.fakes.feature import MemoryFeature
from flywheel_trainer.fakes.jobs import MemoryJobs
from flywheel_trainer.fakes.models import MemoryEvaluations, MemoryModels
from flywheel_trainer.fakes.pipeline_definitions import MemoryPipelineDefinitions
from flywheel_trainer.fakes.pipelines import MemoryPipelines
from flywheel_trainer.fakes.policies import MemoryPolicies
from flywheel_trainer.fakes.registry import MemoryRegistry, MemoryWeights
from flywheel_trainer.fakes.run_edits import MemoryRunEdits
from flywheel_trainer.fakes.runs import MemoryRuns
from flywheel_trainer.fakes.scoring import MemoryFeatureSets, MemoryReleases, MemoryShapes
from flywheel_trainer.fakes.supervision import MemorySupervision
from flywheel_trainer.fakes.tracking import MemoryTracking
from flywheel_trainer.fakes.trials import MemoryTrials
from flywheel_trainer.jobs.scoring_ports import ScoringPeers
from flywheel_trainer.pipelines.ports import PipelineStore
from flywheel_trainer.server import Ports, wire
from tests.support.builders.trainer import AT
from tests.support.eventually import eventually


class TrainerProcess:
    """`flywheel-trainer serve`, which tests can kill and start again with the same settings."""

    def __init__(self, settings: dict[str, str], log: Path) -> None:
        self.settings, self.log = settings, log
        self.process: subprocess.Popen[bytes] | None = None
        self.address = settings["FLYWHEEL_TRAINER_LISTEN"]

    async def start(self) -> None:
        environment = {**os.environ, **self.settings}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - it outlives this test's loop
                [sys.executable, "-m", "flywheel_trainer", "serve"], env=environment, stdout=log, stderr=log
            )
        await eventually(self.is_serving, within=60, every=0.2)

    async def is_serving(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"the trainer ended: {self.log.read_text()[-4000:]}")
        async with grpc.aio.insecure_channel(self.address) as connection:
            try:
                answer = await health_pb2_grpc.HealthStub(connection).Check(
                    health_pb2.HealthCheckRequest(), timeout=1
                )
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Send SIGTERM and return the exit status; 0 if the process has ended before."""
        if self.process is None or self.process.poll() is not None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=25)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The process stands still during the block (SIGSTOP and SIGCONT)."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    @asynccontextmanager
    async def stub(self) -> AsyncIterator[trainer_pb2_grpc.TrainerServiceStub]:
        async with channel(self.address, client_name="test") as connection:
            yield trainer_pb2_grpc.TrainerServiceStub(connection)


class IdleWorkflows:
    """A workflow engine that starts no runs."""

    def __init__(self, store: PipelineStore) -> None:
        self._store = store

    async def start_accepted_runs(self, poll_seconds: float) -> None:
        while True:
            await self._store.unfinished()
            await asyncio.sleep(poll_seconds)


@dataclass(frozen=True)
class MemoryTrainer:
    """A trainer in this process, its adapters, and a stub for it."""

    stub: trainer_pb2_grpc.TrainerServiceStub
    ports: Ports
    clock: ManualClock
    feature: MemoryFeature
    engine: MemoryEngine
    policies: MemoryPolicies
    address: str


def memory_ports() -> Ports:
    """Adapters in memory."""
    tracking, objects, engine = MemoryTracking(), MemoryObjectStore(), MemoryEngine()
    pipelines = MemoryPipelines(tracking)
    feature, registry, definitions = MemoryFeature({}), MemoryRegistry([]), MemoryPipelineDefinitions()
    policies = MemoryPolicies(pipelines, definitions)
    models = MemoryModels()
    tokens = iter(range(1, 1_000_000))

    @asynccontextmanager
    async def workflows(_steps: Any, store: PipelineStore) -> AsyncIterator[IdleWorkflows]:
        yield IdleWorkflows(store)

    async def is_ready() -> bool:
        return True

    async def run_in_one_replica(work: Any) -> None:
        await work(next(tokens))

    async def nothing_to_do() -> None:
        pass

    async def no_events() -> None:
        await asyncio.Event().wait()

    return Ports(
        runs=MemoryRuns(tracking),
        run_edits=MemoryRunEdits(tracking),
        jobs=MemoryJobs(tracking),
        pipelines=pipelines,
        definitions=definitions,
        step_cache=pipelines,
        policies=policies,
        trials=MemoryTrials(tracking),
        checkpoints=MemoryCheckpoints(tracking),
        access=MemoryAttemptAccess(tracking),
        signer=MemorySigner(),
        engine=engine,
        objects=objects,
        feature=feature,
        registry=registry,
        weights=MemoryWeights(registry, objects, "b"),
        scoring=ScoringPeers(feature, MemoryReleases(), MemoryFeatureSets(), MemoryShapes()),
        models=models,
        evaluations=MemoryEvaluations(models),
        workflows=workflows,
        supervision=lambda token: MemorySupervision(tracking, token),
        run_in_one_replica=run_in_one_replica,
        tokens=AttemptTokens(b"k" * 32),
        keep_alive=no_events,
        is_ready=is_ready,
        prepare_objects=nothing_to_do,
        relay_events=no_events,
        consume_drift=no_events,
    )


def memory_settings(**changes: Any) -> TrainerSettings:
    """Settings of a trainer over adapters in memory."""
    values = {
        "listen": "127.0.0.1:0",
        "metrics_listen": "",
        "drain_seconds": 0,
        "grace_seconds": 1,
        "watch_poll_seconds": 0.01,
        "postgres_dsn": SecretStr("postgresql://unused"),
        "kafka_bootstrap": "127.0.0.1:1",
        "s3_endpoint": "http://127.0.0.1:1",
        "s3_access_key": SecretStr("none"),
        "s3_secret_key": SecretStr("none"),
        "s3_bucket": "b",
    }
    return TrainerSettings(**{**values, **changes})


async def serve_in_memory(
    stack: AsyncExitStack, *, signer: Signer | None = None, **settings: Any
) -> MemoryTrainer:
    """A trainer over adapters in memory, without its background tasks."""
    ports = memory_ports()
    if signer is not None:
        ports = replace(ports, signer=signer)
    clock = ManualClock(AT)
    server = await wire(
        memory_settings(**settings),
        stack,
        ports,
        clock=clock,
        ids=SequentialIds("n"),
        prometheus=CollectorRegistry(),
    )
    await server.start()
    server.health.set_ready()
    stack.push_async_callback(server.stop)
    connection = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{server.port}"))
    stub = trainer_pb2_grpc.TrainerServiceStub(connection)
    address = f"127.0.0.1:{server.port}"
    return MemoryTrainer(stub, ports, clock, ports.feature, ports.engine, ports.policies, address)
