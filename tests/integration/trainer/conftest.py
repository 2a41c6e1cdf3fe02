"""A real trainer process on real PostgreSQL, S3, Kafka and Ray, and peers that keep their answers by request id."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import polars as pl
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

from flywheel_common.config import S3Settings
from flywheel_common.grpc_channel import channel
from flywheel_common.s3 import object_store
from flywheel_common.testing import eventually
from flywheel_local.kafka import Kafka
from flywheel_local.postgres import Postgres
from flywheel_local.ray import Ray
from flywheel_local.s3 import S3
from flywheel_protos.feature.v1 import feature_pb2, feature_pb2_grpc, training_set_pb2
from flywheel_protos.registry.v1 import model_pb2, registry_pb2, registry_pb2_grpc
from flywheel_protos.trainer.v1 import trainer_pb2_grpc
from flywheel_protos.types.v1 import job_pb2, value_pb2

MODEL = "projects/default/models/late"
FEATURE_SET = "projects/default/featureSets/late/versions/1"
TRAINING_SET = "projects/default/trainingSets/one"
COLUMNS = {
    "v__x": value_pb2.DATA_TYPE_FLOAT64,
    "v__z": value_pb2.DATA_TYPE_FLOAT64,
    "v__c": value_pb2.DATA_TYPE_STRING,
    "v__b": value_pb2.DATA_TYPE_BOOL,
}


def learnable(rows: int, seed: int = 0) -> pl.DataFrame:
    """Rows in time order whose label follows from the features, with nulls in a number and a text."""
    random = np.random.default_rng(seed)
    x, z = random.normal(20, 5, rows), random.exponential(size=rows)
    c, b = random.choice(["AA", "BB", "CC"], size=rows), random.random(rows) < 0.3
    logit = 0.4 * (x - 20) - 0.8 * z + np.select([c == "AA", c == "BB"], [1.0, -1.0], 0.2) + 0.7 * b
    label = (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)
    start = datetime(2013, 1, 1, tzinfo=UTC)
    return pl.DataFrame(
        {
            "carrier": c,
            "event_timestamp": [start + timedelta(minutes=i) for i in range(rows)],
            "v__x": [None if i % 20 == 0 else float(v) for i, v in enumerate(x)],
            "v__z": z,
            "v__c": [None if i % 50 == 0 else str(v) for i, v in enumerate(c)],
            "v__b": b,
            "label": label,
        }
    )


class Healthy(health_pb2_grpc.HealthServicer):
    """SERVING, as long as the server lives."""

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        await asyncio.Event().wait()


@dataclass
class Effects:
    """What peers did: an effect is counted when a request id is seen first, a call every time."""

    calls: Counter[str] = field(default_factory=Counter)
    effects: Counter[str] = field(default_factory=Counter)
    answers: dict[tuple[str, str], tuple[bytes, Any]] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)

    def once(self, method: str, request: Any, make: Callable[[], Any]) -> Any:
        """The first answer for a request id; another body under it is noted as a conflict."""
        self.calls[method] += 1
        body = request.SerializeToString(deterministic=True)
        key = (method, request.request_id)
        if key not in self.answers:
            self.effects[method] += 1
            self.answers[key] = (body, make())
        elif self.answers[key][0] != body:
            self.conflicts.append(f"{method} {request.request_id}")
        return self.answers[key][1]


class FeaturePeer(feature_pb2_grpc.FeatureServiceServicer):
    """Answers one training set; building takes `looks` looks at the job."""

    def __init__(self, uri: str, rows: int, effects: Effects) -> None:
        self.uri, self.rows, self.seen = uri, rows, effects
        self.looks = 2
        self.spines: list[training_set_pb2.Spine] = []

    async def BuildTrainingSet(self, request: Any, context: Any) -> feature_pb2.BuildTrainingSetResponse:
        self.spines.append(request.spine)
        job = feature_pb2.Job(name="projects/default/jobs/build-1", state=job_pb2.JOB_STATE_QUEUED)
        return self.seen.once(
            "BuildTrainingSet", request, lambda: feature_pb2.BuildTrainingSetResponse(job=job)
        )

    async def GetJob(self, request: Any, context: Any) -> feature_pb2.GetJobResponse:
        self.seen.calls["GetJob"] += 1
        done = self.seen.calls["GetJob"] > self.looks
        state = job_pb2.JOB_STATE_SUCCEEDED if done else job_pb2.JOB_STATE_RUNNING
        return feature_pb2.GetJobResponse(
            job=feature_pb2.Job(name=request.name, state=state, training_set=TRAINING_SET if done else "")
        )

    async def GetTrainingSet(self, request: Any, context: Any) -> feature_pb2.GetTrainingSetResponse:
        if request.name != TRAINING_SET:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such set")
        schema = [
            value_pb2.Field(name="carrier", data_type=value_pb2.DATA_TYPE_STRING),
            value_pb2.Field(name="event_timestamp", data_type=value_pb2.DATA_TYPE_TIMESTAMP),
            *(value_pb2.Field(name=n, data_type=t) for n, t in COLUMNS.items()),
            value_pb2.Field(name="label", data_type=value_pb2.DATA_TYPE_INT64),
        ]
        return feature_pb2.GetTrainingSetResponse(
            training_set=training_set_pb2.TrainingSet(
                name=TRAINING_SET, feature_set=FEATURE_SET, uri=self.uri, row_count=self.rows, schema=schema,
                content_hash="f" * 64, mode=training_set_pb2.JOIN_MODE_POINT_IN_TIME,
                profile=[training_set_pb2.ColumnProfile(name=n) for n in (*COLUMNS, "label")],
            )
        )  # fmt: skip


class RegistryPeer(registry_pb2_grpc.RegistryServiceServicer):
    """Keeps what it is sent; the first version becomes the champion by its rollout."""

    def __init__(self, effects: Effects) -> None:
        self.seen = effects
        self.versions: dict[str, model_pb2.ModelVersion] = {}
        self.releases: dict[str, model_pb2.Release] = {}
        self.files: dict[tuple[str, str], bytes] = {}
        self.evidence: list[model_pb2.Evidence] = []
        self.production = ""
        self.gate_passes = True

    async def GetModel(self, request: Any, context: Any) -> registry_pb2.GetModelResponse:
        return registry_pb2.GetModelResponse(
            model=model_pb2.Model(name=request.name, production_release=self.production)
        )

    async def GetRelease(self, request: Any, context: Any) -> registry_pb2.GetReleaseResponse:
        return registry_pb2.GetReleaseResponse(release=self.releases[request.name])

    async def GetModelVersion(self, request: Any, context: Any) -> registry_pb2.GetModelVersionResponse:
        return registry_pb2.GetModelVersionResponse(model_version=self.versions[request.name])

    async def CreateModelVersion(self, request: Any, context: Any) -> registry_pb2.CreateModelVersionResponse:
        def make() -> registry_pb2.CreateModelVersionResponse:
            version = model_pb2.ModelVersion()
            version.CopyFrom(request.model_version)
            version.name = f"{request.parent}/versions/{len(self.versions) + 1}"
            self.versions[version.name] = version
            return registry_pb2.CreateModelVersionResponse(model_version=version)

        return self.seen.once("CreateModelVersion", request, make)

    async def UploadArtifact(self, requests: Any, context: Any) -> registry_pb2.UploadArtifactResponse:
        target, content = None, io.BytesIO()
        async for part in requests:
            if part.HasField("target"):
                target = part.target
            else:
                content.write(part.data)
        assert target is not None
        declared = {a.name: a.sha256 for a in self.versions[target.model_version].artifacts}
        if hashlib.sha256(content.getvalue()).hexdigest() != declared[target.artifact]:
            await context.abort(grpc.StatusCode.DATA_LOSS, "digest")
        self.files[target.model_version, target.artifact] = content.getvalue()
        return registry_pb2.UploadArtifactResponse(model_version=self.versions[target.model_version])

    async def DownloadArtifact(
        self, request: Any, context: Any
    ) -> AsyncIterator[registry_pb2.DownloadArtifactResponse]:
        content = self.files[request.model_version, request.artifact]
        for start in range(0, len(content), 10_000):
            yield registry_pb2.DownloadArtifactResponse(data=content[start : start + 10_000])

    async def PromoteModelVersion(
        self, request: Any, context: Any
    ) -> registry_pb2.PromoteModelVersionResponse:
        def make() -> registry_pb2.PromoteModelVersionResponse:
            self.evidence.append(request.evidence)
            findings = ["auc 0.8 >= 0.7"] if self.gate_passes else ["auc 0.8 < 0.99"]
            return registry_pb2.PromoteModelVersionResponse(
                passed=self.gate_passes,
                evidence=model_pb2.Evidence(findings=findings, passed=self.gate_passes),
            )

        return self.seen.once("PromoteModelVersion", request, make)

    async def CreateRelease(self, request: Any, context: Any) -> registry_pb2.CreateReleaseResponse:
        def make() -> registry_pb2.CreateReleaseResponse:
            release = model_pb2.Release()
            release.CopyFrom(request.release)
            release.name = f"{request.parent}/releases/{len(self.releases) + 1}"
            self.releases[release.name] = release
            return registry_pb2.CreateReleaseResponse(release=release)

        return self.seen.once("CreateRelease", request, make)

    async def StartRollout(self, request: Any, context: Any) -> registry_pb2.StartRolloutResponse:
        def make() -> registry_pb2.StartRolloutResponse:
            state = model_pb2.ROLLOUT_STATE_SHADOW if self.production else model_pb2.ROLLOUT_STATE_PROMOTED
            self.production = self.production or request.challenger_release
            number = self.seen.effects["StartRollout"]
            rollout = model_pb2.Rollout(name=f"{request.parent}/rollouts/{number}", state=state)
            return registry_pb2.StartRolloutResponse(rollout=rollout)

        return self.seen.once("StartRollout", request, make)


@dataclass
class Peers:
    """The peers, where they listen, and what they did."""

    address: str
    feature: FeaturePeer
    registry: RegistryPeer
    effects: Effects


@pytest_asyncio.fixture
async def peers(s3: S3, bucket: str) -> AsyncIterator[Peers]:
    rows = learnable(4000)
    content = io.BytesIO()
    rows.write_parquet(content)
    settings = S3Settings(
        s3_endpoint=s3.endpoint,
        s3_access_key=SecretStr(s3.access_key),
        s3_secret_key=SecretStr(s3.secret_key),
        s3_bucket=bucket,
    )
    async with object_store(settings) as store:
        await store.ensure_bucket()
        await store.put("sets/one/part-0.parquet", content.getvalue())
    effects = Effects()
    feature = FeaturePeer(f"s3://{bucket}/sets/one/", rows.height, effects)
    registry = RegistryPeer(effects)
    server = grpc.aio.server()
    feature_pb2_grpc.add_FeatureServiceServicer_to_server(feature, server)
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(registry, server)
    health_pb2_grpc.add_HealthServicer_to_server(Healthy(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield Peers(f"127.0.0.1:{port}", feature, registry, effects)
    await server.stop(0.5)


class TrainerProcess:
    """`flywheel-trainer serve`, to be killed and started again with the same settings."""

    def __init__(self, settings: dict[str, str], log: Path) -> None:
        self.settings, self.log = settings, log
        self.process: subprocess.Popen[bytes] | None = None
        self.address = settings["FLYWHEEL_TRAINER_LISTEN"]

    async def start(self) -> None:
        environment = {**os.environ, **self.settings, "AWS_REQUEST_CHECKSUM_CALCULATION": "WHEN_REQUIRED"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - it must outlive this test's loop to be stopped
                [sys.executable, "-m", "flywheel_trainer", "serve"], env=environment, stdout=log, stderr=log
            )
        await eventually(self.healthy, within=60, every=0.2)

    async def healthy(self) -> bool:
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
        if self.process is None or self.process.poll() is not None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=25)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def stub(self) -> tuple[grpc.aio.Channel, trainer_pb2_grpc.TrainerServiceStub]:
        connection = channel(self.address, client_name="test")
        return connection, trainer_pb2_grpc.TrainerServiceStub(connection)


@pytest.fixture
def trainer_settings(
    postgres: Postgres, database: str, s3: S3, bucket: str, free_port: Callable[[], int], tmp_path: Path
) -> dict[str, str]:
    """Settings of a trainer without Kafka and Ray; tests that need them add their addresses."""
    postgres.create_databases([database.rsplit("/", 1)[1] + "_dbos"])
    settings = {
        "listen": f"127.0.0.1:{free_port()}",
        "metrics_listen": "",
        "postgres_dsn": database,
        "kafka_bootstrap": "127.0.0.1:1",
        "consume_drift": "false",
        "s3_endpoint": s3.endpoint,
        "s3_access_key": s3.access_key,
        "s3_secret_key": s3.secret_key,
        "s3_bucket": bucket,
        "pipeline_poll_seconds": "0.2",
        "job_poll_seconds": "0.3",
        "lease_check_seconds": "0.3",
        "drain_seconds": "0.1",
        "feature_address": "127.0.0.1:1",
        "registry_address": "127.0.0.1:1",
        "ray_address": "http://127.0.0.1:1",
        "job_python": sys.executable,
    }
    return {f"FLYWHEEL_TRAINER_{key.upper()}": value for key, value in settings.items()}


@pytest.fixture
def with_kafka(kafka: Kafka, topic_prefix: str) -> dict[str, str]:
    """Settings that turn the consumer on."""
    return {
        "FLYWHEEL_TRAINER_KAFKA_BOOTSTRAP": kafka.bootstrap,
        "FLYWHEEL_TRAINER_CONSUME_DRIFT": "true",
        "FLYWHEEL_TRAINER_DRIFT_TOPIC": f"{topic_prefix}drift.detected",
        "FLYWHEEL_TRAINER_CONSUMER_GROUP": f"{topic_prefix}trainer",
    }


@pytest.fixture
def with_peers(peers: Peers) -> dict[str, str]:
    """Settings that name the peers."""
    return {
        "FLYWHEEL_TRAINER_FEATURE_ADDRESS": peers.address,
        "FLYWHEEL_TRAINER_REGISTRY_ADDRESS": peers.address,
    }


@pytest.fixture
def with_ray(ray: Ray) -> dict[str, str]:
    """Settings that name the cluster."""
    return {"FLYWHEEL_TRAINER_RAY_ADDRESS": ray.jobs_url, "FLYWHEEL_TRAINER_RAY_AUTH_TOKEN": ray.token}


@pytest.fixture
def start_trainer(tmp_path: Path) -> Any:
    """Starts trainers; whatever still runs at the end is stopped."""
    started: list[TrainerProcess] = []

    async def start(settings: dict[str, str]) -> TrainerProcess:
        trainer = TrainerProcess(settings, tmp_path / "trainer.log")
        started.append(trainer)
        await trainer.start()
        return trainer

    yield start
    for trainer in started:
        trainer.stop()
