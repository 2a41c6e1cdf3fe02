"""The real monitor process against real backends, with peers that answer for the registry and the feature service."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from flywheel_common.columns import from_lists, from_numpy, from_texts, to_table
from flywheel_common.grpc.channel import channel
from flywheel_common.kafka import topics
from flywheel_common.kafka.client import ensure_topics
from flywheel_common.kafka.envelope import build_event
from flywheel_common.kafka.producer import Producer
from flywheel_local.kafka import Kafka
from flywheel_local.s3 import S3
from flywheel_protos.events.v1 import prediction_pb2
from flywheel_protos.feature.v1 import feature_pb2, feature_pb2_grpc, training_set_pb2
from flywheel_protos.monitor.v1 import monitor_pb2 as pb
from flywheel_protos.monitor.v1 import monitor_pb2_grpc
from flywheel_protos.registry.v1 import model_pb2, registry_pb2, registry_pb2_grpc
from flywheel_protos.types.v1 import value_pb2
from flywheel_protos.types.v1.value_pb2 import DATA_TYPE_INT64_LIST
from tests.support.eventually import eventually

START = datetime(2013, 4, 1, tzinfo=UTC)
HOUR_US = 3_600_000_000
START_US = int(START.timestamp() * 1e6)
CARRIERS = ["AA", "B6", "DL", "UA"]


def profile(delays: np.ndarray, carriers: list[str]) -> list[training_set_pb2.ColumnProfile]:
    """Profiles as a training set has them, made independently of the monitor."""
    edges = np.unique(np.quantile(delays, np.linspace(0, 1, 129)[1:-1]))
    counts = np.bincount(np.searchsorted(edges, delays, side="left"), minlength=len(edges) + 1)
    names, totals = np.unique(carriers, return_counts=True)
    return [
        training_set_pb2.ColumnProfile(
            name="flights__delay",
            data_type=value_pb2.DATA_TYPE_FLOAT64,
            count=len(delays),
            mean=delays.mean(),
            stddev=delays.std(),
            min=delays.min(),
            max=delays.max(),
            edges=edges,
            bin_counts=counts,
        ),
        training_set_pb2.ColumnProfile(
            name="flights__carrier",
            data_type=value_pb2.DATA_TYPE_STRING,
            count=len(carriers),
            categories=names.tolist(),
            category_counts=totals.tolist(),
        ),
    ]


class Registry(registry_pb2_grpc.RegistryServiceServicer):
    """Answers for versions it was given."""

    def __init__(self) -> None:
        self.versions: dict[str, model_pb2.ModelVersion] = {}
        self.down = False
        self.calls = 0

    async def GetModelVersion(self, request: Any, context: Any) -> registry_pb2.GetModelVersionResponse:
        self.calls += 1
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        if request.name not in self.versions:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such version")
        return registry_pb2.GetModelVersionResponse(model_version=self.versions[request.name])


class Feature(feature_pb2_grpc.FeatureServiceServicer):
    def __init__(self) -> None:
        self.sets: dict[str, training_set_pb2.TrainingSet] = {}

    async def GetTrainingSet(self, request: Any, context: Any) -> feature_pb2.GetTrainingSetResponse:
        if request.name not in self.sets:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such training set")
        return feature_pb2.GetTrainingSetResponse(training_set=self.sets[request.name])


@dataclass
class Peers:
    registry: Registry
    feature: Feature
    address: str


@pytest.fixture
async def peers() -> AsyncIterator[Peers]:
    server = grpc.aio.server()
    found = Peers(Registry(), Feature(), "")
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(found.registry, server)
    feature_pb2_grpc.add_FeatureServiceServicer_to_server(found.feature, server)
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    await checks.set("", health_pb2.HealthCheckResponse.SERVING)
    found.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield found
    await server.stop(None)


@dataclass
class Monitor:
    """The service as a process: `start`, `kill`, and its stub."""

    environment: dict[str, str]
    address: str
    log: Path
    process: asyncio.subprocess.Process | None = None
    stub: Any = None
    _channel: Any = None

    async def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "flywheel_monitor",
                "serve",
                env=self.environment,
                stdout=out,
                stderr=out,
            )
        if self._channel is None:
            self._channel = channel(
                self.address, client_name="test", health_check=False, default_timeout_seconds=10
            )
            self.stub = monitor_pb2_grpc.MonitorServiceStub(self._channel)

        async def answers() -> bool:
            assert self.process is not None
            assert self.process.returncode is None, self.log.read_text()[-4000:]
            with suppress(grpc.RpcError):
                await self.stub.GetIngestStatus(pb.GetIngestStatusRequest(parent="projects/none"), timeout=2)
                return True
            return False

        await eventually(answers, within=40, every=0.1)

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self.process.wait(), 20)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        if self._channel is not None:
            await self._channel.close()


@dataclass
class World:
    """One project with one model, its traffic, and the monitor that watches it."""

    monitor: Monitor
    peers: Peers
    producer: Producer
    kafka: str
    bucket: str
    s3: S3
    dsn: str
    project: str
    version: str = ""
    sent: list[str] = field(default_factory=list)

    @property
    def model(self) -> str:
        return f"projects/{self.project}/models/late"

    def version_name(self, number: int = 1) -> str:
        return f"{self.model}/versions/{number}"

    def release(self, number: int = 1) -> str:
        return f"{self.model}/releases/{number}"

    def register(
        self, number: int = 1, *, metrics: dict[str, float] | None = None, with_profile: bool = True
    ) -> None:
        """A version trained on standard-normal delays and four equally frequent carriers."""
        rng = np.random.default_rng(1)
        training_set = f"projects/{self.project}/trainingSets/ts{number}"
        name = self.version_name(number)
        self.peers.registry.versions[name] = model_pb2.ModelVersion(
            name=name,
            training_dataset=training_set if with_profile else "",
            metrics=metrics or {},
            signature=model_pb2.Signature(
                inputs=[model_pb2.SignatureInput(name=n) for n in ("flights__delay", "flights__carrier")]
            ),
        )
        self.peers.feature.sets[training_set] = training_set_pb2.TrainingSet(
            name=training_set, label_mean=0.3, profile=profile(rng.normal(size=20_000), (CARRIERS * 5_000))
        )

    @staticmethod
    def rows(n: int, seed: int = 0, *, start_us: int = START_US, hours: float = 24.0) -> dict[str, Any]:
        """n unremarkable answers spread over some hours."""
        rng = np.random.default_rng(seed)
        return {
            "ids": [f"{seed}-{uuid.uuid4()}" for _ in range(n)],
            "times": start_us + (np.arange(n) * (hours * HOUR_US / n)).astype(np.int64),
            "scores": rng.uniform(0.05, 0.95, n),
            "delays": rng.normal(size=n),
        }

    async def predict(
        self,
        ids: list[str],
        times: np.ndarray,
        scores: np.ndarray,
        delays: np.ndarray,
        *,
        carriers: list[str] | None = None,
        role: int = 1,
        release: int = 1,
        version: int = 1,
        rollout: str = "",
        valid: np.ndarray | None = None,
        decisions: np.ndarray | None = None,
        sources: np.ndarray | None = None,
        segments: list[str] | None = None,
        latencies: np.ndarray | None = None,
        chunk: int = 500,
    ) -> None:
        """Sends answers as the gateway does: one record per partition and chunk."""
        carriers = carriers or [CARRIERS[i % 4] for i in range(len(ids))]
        decisions = scores >= 0.5 if decisions is None else decisions
        sources = np.ones(len(ids)) if sources is None else sources
        latencies = np.full(len(ids), 3.0) if latencies is None else latencies
        parts = np.array([topics.partition_for(i) for i in ids])
        for partition in range(topics.DEFAULT_PARTITIONS):
            rows = np.flatnonzero(parts == partition)
            for at in (rows[k : k + chunk] for k in range(0, len(rows), chunk)):
                columns = [
                    from_numpy("flights__delay", delays[at], None if valid is None else valid[at]),
                    from_texts("flights__carrier", [carriers[i] for i in at]),
                ]
                batch = prediction_pb2.PredictionBatch(
                    model=self.model,
                    model_version=self.version_name(version),
                    release=self.release(release),
                    rollout=rollout,
                    role=role,
                    prediction_ids=[ids[i] for i in at],
                    event_times=times[at].astype("<i8").tobytes(),
                    features=to_table(columns),
                    scores=scores[at].astype("<f8").tobytes(),
                    decisions=decisions[at].astype("u1").tobytes(),
                    sources=sources[at].astype("u1").tobytes(),
                    latencies_ms=latencies[at].astype("<f4").tobytes(),
                    subjects=[f"s{i}" for i in at],
                    segments=[segments[i] for i in at] if segments else [],
                    entities=to_table([from_texts("flight", [ids[i] for i in at])]),
                    request_fields=to_table([from_numpy("distance", delays[at] * 2)]),
                    feature_set=f"projects/{self.project}/featureSets/f/versions/1",
                )
                if partition:
                    # Partition 0 comes from a gateway that does not log them.
                    applied = from_lists("w@2", [[3, i] * (i % 2) for i in at], DATA_TYPE_INT64_LIST)
                    batch.applied_offsets.CopyFrom(to_table([applied]))
                await self.send(topics.PREDICTION_LOGGED, batch, partition)

    async def label(
        self,
        ids: list[str],
        values: np.ndarray,
        times: np.ndarray,
        *,
        outcome_ids: list[str] | None = None,
        name: str = "label",
    ) -> None:
        outcome_ids = outcome_ids or [f"o-{i}" for i in ids]
        parts = np.array([topics.partition_for(i) for i in ids])
        for partition in range(topics.DEFAULT_PARTITIONS):
            at = np.flatnonzero(parts == partition)
            if len(at):
                batch = prediction_pb2.OutcomeBatch(
                    model=self.model,
                    prediction_ids=[ids[i] for i in at],
                    event_times=times[at].astype("<i8").tobytes(),
                    name=name,
                    values=values[at].astype("<f8").tobytes(),
                    outcome_ids=[outcome_ids[i] for i in at],
                )
                await self.send(topics.OUTCOME_RECORDED, batch, partition)

    async def send(self, topic: str, payload: Any, partition: int) -> None:
        event = build_event(payload, source="test", key=str(partition), event_time=START)
        await self.producer.send(topic, event, partition=partition)

    async def status(self) -> pb.GetIngestStatusResponse:
        return await self.monitor.stub.GetIngestStatus(
            pb.GetIngestStatusRequest(parent=f"projects/{self.project}")
        )

    async def processed(
        self, predictions: int, outcomes: int = 0, *, within: float = 40
    ) -> pb.GetIngestStatusResponse:
        """Waits until so much has been counted."""

        async def counted() -> Any:
            found = await self.status()
            assert (found.predictions, found.outcomes) == (predictions, outcomes)
            return found

        return await eventually(counted, within=within, every=0.1)


@pytest.fixture
async def world(
    kafka: Kafka,
    s3: S3,
    bucket: str,
    database: str,
    free_port: Callable[[], int],
    tmp_path: Path,
    peers: Peers,
) -> AsyncIterator[World]:
    await ensure_topics(kafka.bootstrap, topics.STANDARD)
    project = f"p{uuid.uuid4().hex[:10]}"
    address = f"127.0.0.1:{free_port()}"
    settings = {
        "LISTEN": address,
        "METRICS_LISTEN": f"127.0.0.1:{free_port()}",
        "POSTGRES_DSN": database,
        "KAFKA_BOOTSTRAP": kafka.bootstrap,
        "S3_ENDPOINT": s3.endpoint,
        "S3_ACCESS_KEY": s3.access_key,
        "S3_SECRET_KEY": s3.secret_key,
        "S3_BUCKET": bucket,
        "REGISTRY_ADDRESS": peers.address,
        "FEATURE_ADDRESS": peers.address,
        "CONSUMER_GROUP": f"monitor-{project}",
        "LEASE_TTL_SECONDS": "1.5",
        "DRAIN_SECONDS": "0.1",
        "ARCHIVE_IDLE_SECONDS": "1",
    }
    environment = {**os.environ, **{f"FLYWHEEL_MONITOR_{k}": v for k, v in settings.items()}}
    monitor = Monitor(environment, address, tmp_path / "monitor.log")
    async with Producer(kafka.bootstrap, client_id="test-monitor") as producer:
        found = World(monitor, peers, producer, kafka.bootstrap, bucket, s3, database, project)
        started = time.monotonic()
        try:
            await monitor.start()
            yield found
        finally:
            await monitor.stop()
            print(f"monitor ran {time.monotonic() - started:.1f} s; log: {monitor.log}")
            print(monitor.log.read_text()[-3000:])
