"""Real backends for every test that asks for one: started on first use, once per session, on free ports.

A fixture named after a backend (``postgres``, ``redis``, ``s3``, ``kafka``, ``triton``, ``ray``) is the running server of
``flywheel_local``: its addresses, and ``kill()``, ``restart()`` and ``process.signal(…)`` for fault tests. What a test
writes to lies apart from what others write to: ``database`` is a new PostgreSQL database, ``bucket`` a new bucket,
``topic_prefix`` a prefix no other test has; ``redis_url`` is empty when the test begins.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import asyncpg
import pytest
from pydantic import SecretStr

from flywheel_common.config import S3Settings
from flywheel_local.backend import Backend
from flywheel_local.backends import Backends
from flywheel_local.kafka import Kafka
from flywheel_local.ports import free
from flywheel_local.postgres import Postgres
from flywheel_local.ray import Ray
from flywheel_local.redis import Redis
from flywheel_local.s3 import S3
from flywheel_local.triton import Triton

# pyarrow and botocore read these once; rclone understands neither of the newer checksum headers.
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_REQUIRED")
os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "WHEN_REQUIRED")
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
# Backends are started while gRPC runs in this process: its handlers around a fork crash the child before it becomes the backend.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


_Kind = TypeVar("_Kind", bound=Backend)


@pytest.fixture(scope="session")
def backends_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="flywheel-test-"))
    # PostgreSQL runs as another user when the tests run as root.
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


class _Servers:
    """Starts a backend when the first test asks, and again when a fault test left it dead."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: dict[str, Backend] = {}

    def get(self, kind: type[_Kind]) -> _Kind:
        server = self._running.get(kind.name)
        if server is None:
            started = Backends({kind.name}, directory=self._directory, durable=False)
            started.start()
            (server,) = started
            self._running[kind.name] = server
        elif server.process is None or not server.process.running:
            server.restart()
        assert isinstance(server, kind)
        return server

    def stop(self) -> None:
        for server in self._running.values():
            server.stop()


@pytest.fixture(scope="session")
def servers(backends_directory: Path) -> Iterator[_Servers]:
    started = _Servers(backends_directory)
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture
def postgres(servers: _Servers) -> Postgres:
    return servers.get(Postgres)


@pytest.fixture
def redis(servers: _Servers) -> Redis:
    return servers.get(Redis)


@pytest.fixture
def s3(servers: _Servers) -> S3:
    return servers.get(S3)


@pytest.fixture
def kafka(servers: _Servers) -> Kafka:
    return servers.get(Kafka)


@pytest.fixture
def triton(servers: _Servers) -> Triton:
    return servers.get(Triton)


@pytest.fixture
def ray(servers: _Servers) -> Ray:
    return servers.get(Ray)


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """DSN of a new, empty database."""
    name = f"test_{uuid.uuid4().hex[:16]}"
    postgres.create_databases([name])
    yield postgres.dsn(name)
    asyncio.run(_drop(postgres.dsn(), name))


async def _drop(dsn: str, name: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    finally:
        await connection.close()


@pytest.fixture
def redis_url(redis: Redis) -> str:
    """URL of the Redis server, emptied."""
    redis.flush()
    return redis.url


@pytest.fixture
def bucket(s3: S3) -> str:
    """Name of a new, empty bucket."""
    name = f"test-{uuid.uuid4().hex[:16]}"
    s3.create_bucket(name)
    return name


@pytest.fixture
def s3_settings(s3: S3, bucket: str) -> S3Settings:
    """How a service reaches that bucket."""
    return S3Settings(
        s3_endpoint=s3.endpoint,
        s3_access_key=SecretStr(s3.access_key),
        s3_secret_key=SecretStr(s3.secret_key),
        s3_bucket=bucket,
    )


@pytest.fixture
def topic_prefix(kafka: Kafka) -> str:
    """A prefix for topic and group names that no other test uses."""
    return f"t{uuid.uuid4().hex[:12]}."


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Hands out a free loopback port per call."""
    return lambda: free(["one"])["one"]
