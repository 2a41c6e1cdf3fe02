"""The feature service on real backends: the gRPC server in this process, stream workers as processes of their
own.

A suite imports the fixtures that it needs into its conftest.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pyarrow.fs as fs
import pytest
import pytest_asyncio

import flywheel as fw
from flywheel_common.grpc.server import Server
from flywheel_feature.config import FeatureSettings
from flywheel_feature.server import build
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_local.kafka import Kafka
from flywheel_local.s3 import S3
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.types.v1 import job_pb2
from tests.support.eventually import eventually

STOP_SECONDS = 20
PARENT = "projects/default"
ENDED = (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)


def s3_files(s3: S3) -> fs.S3FileSystem:
    """The files of the local object store."""
    return fs.S3FileSystem(
        access_key=s3.access_key,
        secret_key=s3.secret_key,
        endpoint_override=s3.endpoint.removeprefix("http://"),
        scheme="http",
        allow_bucket_creation=True,
    )


def s3_tables(s3: S3, bucket: str) -> S3Tables:
    """Tables of a bucket of the local object store."""
    return S3Tables.connect(
        endpoint=s3.endpoint, access_key=s3.access_key, secret_key=s3.secret_key, bucket=bucket
    )


@pytest.fixture
def tables(s3: S3, bucket: str) -> S3Tables:
    """Tables of the test's bucket."""
    return s3_tables(s3, bucket)


@pytest.fixture
def environment(
    database: str, redis_url: str, bucket: str, s3: S3, kafka: Kafka, topic_prefix: str
) -> dict[str, str]:
    """Settings of a platform that shares no data with other tests."""
    values = {
        "LISTEN": "127.0.0.1:0",
        "METRICS_LISTEN": "",
        "POSTGRES_DSN": database,
        "REDIS_URL": redis_url,
        "KAFKA_BOOTSTRAP": kafka.bootstrap,
        "S3_ENDPOINT": s3.endpoint,
        "S3_ACCESS_KEY": s3.access_key,
        "S3_SECRET_KEY": s3.secret_key,
        "S3_BUCKET": bucket,
        "TOPIC_PREFIX": topic_prefix,
        "KAFKA_PARTITIONS": "2",
        # The shortest session that brokers allow: the partitions of a killed worker are free again soon.
        "STREAM_SESSION_SECONDS": "6",
        "DRAIN_SECONDS": "0",
        "GRACE_SECONDS": "1",
    }
    return {f"FLYWHEEL_FEATURE_{name}": value for name, value in values.items()}


@pytest_asyncio.fixture
async def server(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    """The gRPC server, running in this process."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    async with AsyncExitStack() as stack:
        server = await build(FeatureSettings(), stack)
        supervised = asyncio.create_task(server.run_until_signal())
        while not server.port and not supervised.done():
            await asyncio.sleep(0.01)
        yield server
        server.request_stop()
        await supervised


@pytest_asyncio.fixture
async def client(server: Server) -> AsyncIterator[fw.Client]:
    """The SDK's client of this server."""
    async with fw.Client(feature=f"127.0.0.1:{server.port}") as opened:
        yield opened


class StreamWorkers:
    """Stream worker processes of one platform."""

    def __init__(self, environment: dict[str, str], directory: Path) -> None:
        self.environment = {**os.environ, **environment}
        self._directory = directory
        self.running: list[subprocess.Popen[bytes]] = []
        self._count = 0

    def start(self) -> subprocess.Popen[bytes]:
        self._count += 1
        with (self._directory / f"worker-{self._count}.log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "flywheel_feature", "materialize"],
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        self.running.append(worker)
        return worker

    def kill(self, worker: subprocess.Popen[bytes]) -> None:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        self.running.remove(worker)

    def stop(self) -> None:
        for worker in self.running:
            worker.terminate()
        for worker in self.running:
            worker.wait(STOP_SECONDS)


@pytest.fixture
def workers(environment: dict[str, str], tmp_path: Path) -> Iterator[StreamWorkers]:
    started = StreamWorkers(environment, tmp_path)
    yield started
    started.stop()


class ServiceProcesses:
    """Processes of the gRPC service of one platform."""

    def __init__(self, environment: dict[str, str], directory: Path) -> None:
        self._environment = {**os.environ, **environment}
        self._directory = directory
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, port: int) -> subprocess.Popen[bytes]:
        """Start a process that listens on this port of 127.0.0.1."""
        with (self._directory / f"serve-{len(self._started)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "flywheel_feature", "serve"],
                env={**self._environment, "FLYWHEEL_FEATURE_LISTEN": f"127.0.0.1:{port}"},
                stdout=log,
                stderr=log,
            )
        self._started.append(process)
        return process

    def stop(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.terminate()
                process.wait(STOP_SECONDS)


@pytest.fixture
def service_processes(environment: dict[str, str], tmp_path: Path) -> Iterator[ServiceProcesses]:
    started = ServiceProcesses(environment, tmp_path)
    yield started
    started.stop()


async def answers(client: fw.Client) -> bool:
    """Whether the service answers; for `eventually` after a start."""
    try:
        await client.feature.ListJobs(pb.ListJobsRequest(parent=PARENT))
    except fw.FlywheelError:
        return False
    return True


async def job_of(client: fw.Client, name: str) -> pb.Job:
    return (await client.feature.GetJob(pb.GetJobRequest(name=name))).job


async def job_ended(client: fw.Client, name: str, within: float = 30) -> pb.Job:
    """The job once it has ended, whatever its state."""

    async def ended() -> pb.Job | None:
        job = await job_of(client, name)
        return job if job.state in ENDED else None

    job: pb.Job = await eventually(ended, within=within)
    return job


async def archived_events(client: fw.Client) -> int:
    """Archived events of all stream sources of the default project."""
    answer = await client.feature.GetFreshness(pb.GetFreshnessRequest(parent=PARENT))
    return sum(f.archived_events for f in answer.freshness)


async def events_archived(client: fw.Client, count: int, within: float = 90) -> None:
    """Wait until exactly `count` events are archived."""

    async def archived() -> bool:
        return await archived_events(client) == count

    await eventually(archived, within=within, every=0.05)
