"""The monitor as a process on real backends, and a model whose traffic it monitors."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from flywheel_common.columns import from_lists, from_numpy, from_texts, to_table
from flywheel_common.grpc.channel import channel
from flywheel_common.kafka import topics
from flywheel_common.kafka.envelope import build_event
from flywheel_common.kafka.producer import Producer
from flywheel_common.value import from_micros
from flywheel_local.kafka import Kafka
from flywheel_local.s3 import S3
from flywheel_protos.events.v1 import prediction_pb2
from flywheel_protos.feature.v1 import training_set_pb2
from flywheel_protos.monitor.v1 import monitor_pb2 as pb
from flywheel_protos.monitor.v1 import monitor_pb2_grpc
from flywheel_protos.types.v1.value_pb2 import DATA_TYPE_INT64_LIST
from tests.support.builders.monitor import HOUR_US, START_US
from tests.support.eventually import eventually
from tests.support.peers.monitor import Peers, profile

CARRIERS = ["AA", "B6", "DL", "UA"]
BURST_US = HOUR_US // 3


def process_environment(
    *,
    address: str,
    metrics_address: str,
    dsn: str,
    kafka: Kafka,
    s3: S3,
    bucket: str,
    peers: Peers,
    group: str,
) -> dict[str, str]:
    """The environment of a monitor process on these backends."""
    settings = {
        "LISTEN": address,
        "METRICS_LISTEN": metrics_address,
        "POSTGRES_DSN": dsn,
        "KAFKA_BOOTSTRAP": kafka.bootstrap,
        "S3_ENDPOINT": s3.endpoint,
        "S3_ACCESS_KEY": s3.access_key,
        "S3_SECRET_KEY": s3.secret_key,
        "S3_BUCKET": bucket,
        "REGISTRY_ADDRESS": peers.address,
        "FEATURE_ADDRESS": peers.address,
        "CONSUMER_GROUP": group,
        "LEASE_TTL_SECONDS": "1.5",
        "DRAIN_SECONDS": "0.1",
        "ARCHIVE_IDLE_SECONDS": "1",
    }
    return {**os.environ, **{f"FLYWHEEL_MONITOR_{k}": v for k, v in settings.items()}}


@dataclass
class MonitorProcess:
    """The monitor as a process, and a stub of it."""

    environment: dict[str, str]
    address: str
    log: Path
    process: asyncio.subprocess.Process | None = None
    stub: Any = None
    channel: grpc.aio.Channel | None = None

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
        if self.channel is None:
            self.channel = channel(self.address, client_name="test")
            self.stub = monitor_pb2_grpc.MonitorServiceStub(self.channel)

        async def serves() -> bool:
            assert self.process is not None
            assert self.process.returncode is None, self.log.read_text()[-4000:]
            with suppress(grpc.RpcError):
                await self.stub.GetIngestStatus(pb.GetIngestStatusRequest(parent="projects/none"), timeout=2)
                return True
            return False

        await eventually(serves, within=40, every=0.1)

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
        if self.channel is not None:
            await self.channel.close()


@dataclass
class MonitoredModel:
    """A model in a project of its own, its traffic, and the process that monitors it."""

    monitor: MonitorProcess
    peers: Peers
    producer: Producer
    kafka: str
    bucket: str
    s3: S3
    dsn: str
    project: str

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
        """Register a version trained on standard-normal delays and four equally frequent carriers."""
        rng = np.random.default_rng(1)
        training_set = f"projects/{self.project}/trainingSets/ts{number}"
        inputs = ["flights__delay", "flights__carrier"]
        self.peers.registry.add(
            self.version_name(number), training_set if with_profile else "", inputs, metrics
        )
        self.peers.feature.sets[training_set] = training_set_pb2.TrainingSet(
            name=training_set, label_mean=0.3, profile=profile(rng.normal(size=20_000), CARRIERS * 5_000)
        )

    @staticmethod
    def rows(n: int, seed: int = 0, *, start_us: int = START_US, hours: float = 24.0) -> dict[str, Any]:
        """n predictions without drift, spread over some hours: in the first minute of each 20, so that the
        monitor has few panes of a minute to merge."""
        rng = np.random.default_rng(seed)
        offsets = (np.arange(n) * (hours * HOUR_US / n)).astype(np.int64)
        return {
            "ids": [f"{seed}-{uuid.uuid4()}" for _ in range(n)],
            "times": start_us + offsets - offsets % BURST_US * 19 // 20,
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
        subjects: list[str] | None = None,
        chunk: int = 500,
    ) -> None:
        """Send predictions as the gateway does: one record per partition and chunk."""
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
                    subjects=[subjects[i] if subjects else f"s{i}" for i in at],
                    segments=[segments[i] for i in at] if segments else [],
                    entities=to_table([from_texts("flight", [ids[i] for i in at])]),
                    request_fields=to_table([from_numpy("distance", delays[at] * 2)]),
                    feature_set=f"projects/{self.project}/featureSets/f/versions/1",
                )
                if partition:
                    # Partition 0 stands for a gateway that does not log applied offsets.
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
        event = build_event(payload, source="test", key=str(partition), event_time=from_micros(START_US))
        await self.producer.send(topic, event, partition=partition)

    async def status(self) -> pb.GetIngestStatusResponse:
        return await self.monitor.stub.GetIngestStatus(
            pb.GetIngestStatusRequest(parent=f"projects/{self.project}")
        )

    async def processed(
        self, predictions: int, outcomes: int = 0, *, within: float = 40
    ) -> pb.GetIngestStatusResponse:
        """Wait until so many predictions and outcomes are counted."""

        async def counted() -> Any:
            found = await self.status()
            assert (found.predictions, found.outcomes) == (predictions, outcomes)
            return found

        return await eventually(counted, within=within, every=0.1)
