"""A trainer process on real PostgreSQL, S3, Kafka and Ray, with stand-ins for the feature service and the
registry."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from flywheel_common.config import S3Settings
from flywheel_common.storage.s3 import object_store
from flywheel_local.kafka import Kafka
from flywheel_local.postgres import Postgres
from flywheel_local.ray import Ray
from flywheel_local.s3 import S3
from tests.support.builders.trainer import learnable_rows
from tests.support.peers.trainer import Peers, serve_peers
from tests.support.ports import free_port
from tests.support.servers.trainer import TrainerProcess


@pytest_asyncio.fixture
async def peers(s3_settings: S3Settings, bucket: str) -> AsyncIterator[Peers]:
    """Peers whose training set is on S3."""
    rows = learnable_rows(4000)
    content = io.BytesIO()
    rows.write_parquet(content)
    async with object_store(s3_settings) as store:
        await store.ensure_bucket()
        await store.put("sets/one/part-0.parquet", content.getvalue())
    async with AsyncExitStack() as stack:
        yield await serve_peers(stack, f"s3://{bucket}/sets/one/", rows.height)


@pytest.fixture
def trainer_settings(postgres: Postgres, database: str, s3: S3, bucket: str) -> dict[str, str]:
    """Settings of a trainer without Kafka, Ray and peers; the `with_…` fixtures add their addresses."""
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
        # Jobs run the code of this checkout, also where the environment has another one installed.
        "job_environment": json.dumps({"PYTHONPATH": os.environ.get("PYTHONPATH", "")}),
    }
    return as_environment(settings)


@pytest.fixture
def with_kafka(kafka: Kafka, topic_prefix: str) -> dict[str, str]:
    return as_environment(
        {
            "kafka_bootstrap": kafka.bootstrap,
            "consume_drift": "true",
            "drift_topic": f"{topic_prefix}drift.detected",
            "consumer_group": f"{topic_prefix}trainer",
        }
    )


@pytest.fixture
def with_peers(peers: Peers) -> dict[str, str]:
    return as_environment({"feature_address": peers.address, "registry_address": peers.address})


@pytest.fixture
def with_ray(ray: Ray) -> dict[str, str]:
    return as_environment({"ray_address": ray.jobs_url, "ray_auth_token": ray.token})


@pytest.fixture
def start_trainer(tmp_path: Path) -> Iterator[Callable[[dict[str, str]], Awaitable[TrainerProcess]]]:
    """Starts trainers, and stops those that still run at the end of the test."""
    started: list[TrainerProcess] = []

    async def start(settings: dict[str, str]) -> TrainerProcess:
        trainer = TrainerProcess(settings, tmp_path / "trainer.log")
        started.append(trainer)
        await trainer.start()
        return trainer

    yield start
    for trainer in started:
        trainer.stop()


def as_environment(settings: dict[str, str]) -> dict[str, str]:
    return {f"FLYWHEEL_TRAINER_{key.upper()}": value for key, value in settings.items()}
