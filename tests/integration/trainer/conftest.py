"""A real trainer process on real PostgreSQL, S3, Kafka and Ray, and peers that keep their answers by request id."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import polars as pl
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from flywheel_common.config import S3Settings
from flywheel_common.grpc.channel import channel
from flywheel_common.storage.s3 import object_store
from flywheel_local.kafka import Kafka
from flywheel_local.postgres import Postgres
from flywheel_local.ray import Ray
from flywheel_local.s3 import S3
from flywheel_protos.feature.v1 import feature_pb2_grpc
from flywheel_protos.registry.v1 import registry_pb2_grpc
from flywheel_protos.trainer.v1 import trainer_pb2_grpc
from tests.integration.trainer.peer_servers import Effects, FeaturePeer, Healthy, Peers, RegistryPeer
from tests.support.eventually import eventually


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


@pytest_asyncio.fixture
async def peers(s3_settings: S3Settings, bucket: str) -> AsyncIterator[Peers]:
    rows = learnable(4000)
    content = io.BytesIO()
    rows.write_parquet(content)
    async with object_store(s3_settings) as store:
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
