"""Fixtures for real backends: each is started on first use, once per session, on free ports.

A fixture named after a backend (``postgres``, ``redis``, ``s3``, ``kafka``, ``triton``, ``ray``) is the
running server of ``flywheel_local``: its addresses, and ``kill()``, ``restart()`` and ``process.signal(…)``
for fault tests. Tests do not share data: ``database`` is a new PostgreSQL database, ``bucket`` a new bucket,
``topic_prefix`` a unique prefix; ``redis_url`` is an empty Redis.
"""

from __future__ import annotations

import os

# Libraries read these when they are imported. gRPC's fork handlers crash a child that is forked while gRPC
# runs in this process, as backends are.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")

import asyncio
import functools
import inspect
import shutil
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import hypothesis
import pytest
import structlog
from pydantic import SecretStr

from flywheel_common.config import S3Settings
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import create_pool
from flywheel_local import ports
from flywheel_local.backend import Backend
from flywheel_local.backends import Backends
from flywheel_local.kafka import Kafka
from flywheel_local.postgres import Postgres
from flywheel_local.ray import Ray
from flywheel_local.redis import Redis
from flywheel_local.s3 import S3
from flywheel_local.triton import Triton

# A busy machine is no failure: no time limits for single examples or for their generation.
hypothesis.settings.register_profile(
    "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")

# By default structlog lets rich draw the local variables of each frame: 0.15 s of CPU time per logged error.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cancel a test that reaches its time limit. pytest-timeout raises where the main thread is at that time,
    which may be a background task that keeps the exception, so that the test would wait for ever."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            marker = item.get_closest_marker("timeout")
            limit = float(marker.args[0] if marker and marker.args else item.config.getini("timeout"))
            if limit:
                item.obj = _within(limit - min(5.0, limit / 10), item.obj)


def _within(seconds: float, test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def bounded(*args: Any, **kwargs: Any) -> None:
        async with asyncio.timeout(seconds):
            await test(*args, **kwargs)

    return bounded


# Test processes that run side by side (pytest-xdist) must not choose the same free port.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    ports.FREE = ports.FREE[int(worker.removeprefix("gw")) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]

_SERVICES = Path(__file__).resolve().parents[1] / "services"

_Kind = TypeVar("_Kind", bound=Backend)


@pytest.fixture(scope="session")
def backends_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="flywheel-test-"))
    # PostgreSQL runs as another user when the tests run as root.
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


class _Servers:
    """Starts a backend on first use, and restarts it when a fault test left it dead."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: dict[str, Backend] = {}

    def get(self, kind: type[_Kind]) -> _Kind:
        server = self._running.get(kind.name)
        if server is None:
            started = Backends({kind.name}, directory=self._directory, durable=False)
            (server,) = started
            if isinstance(server, Kafka):
                server.brief = True
            started.start()
            self._running[kind.name] = server
        elif server.process is None or not server.process.running:
            server.restart()
        assert isinstance(server, kind)
        return server

    def stop_one(self, kind: type[Backend]) -> None:
        server = self._running.pop(kind.name, None)
        if server is not None:
            server.stop()

    def stop(self) -> None:
        with ThreadPoolExecutor() as pool:
            for stopped in [pool.submit(server.stop) for server in self._running.values()]:
                stopped.result()


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


@pytest.fixture(scope="module")
def ray_of_module(servers: _Servers) -> Iterator[None]:
    """Stops Ray after the file: few files use it, and its idle processes need 5 % of a CPU."""
    yield
    servers.stop_one(Ray)


@pytest.fixture
def ray(servers: _Servers, ray_of_module: None) -> Ray:
    return servers.get(Ray)


@pytest.fixture(scope="session")
def templates() -> dict[str, str]:
    """Service → name of the database that holds its migrated, empty schema."""
    return {}


@pytest.fixture
def empty_database(postgres: Postgres) -> Iterator[str]:
    """DSN of a new, empty database."""
    name = f"test_{uuid.uuid4().hex[:16]}"
    postgres.create_databases([name])
    yield postgres.dsn(name)
    _drop(postgres, name)


@pytest.fixture
def database(request: pytest.FixtureRequest, postgres: Postgres, templates: dict[str, str]) -> Iterator[str]:
    """DSN of a new database: migrated for tests in tests/<tier>/<service>, else empty."""
    service = request.path.parent.name
    migrations = _SERVICES / service / f"flywheel_{service}" / "migrations"
    if not migrations.is_dir():
        yield request.getfixturevalue("empty_database")
        return
    if service not in templates:
        templates[service] = f"template_{service}_{uuid.uuid4().hex[:8]}"
        postgres.create_databases([templates[service]])
        asyncio.run(_migrate(postgres.dsn(templates[service]), migrations))
    name = f"test_{uuid.uuid4().hex[:16]}"
    # A copy of the files needs half the CPU time of PostgreSQL's default, which writes each page to the log.
    copy = f'CREATE DATABASE "{name}" TEMPLATE "{templates[service]}" STRATEGY FILE_COPY'
    asyncio.run(_execute(postgres.dsn(), copy))
    yield postgres.dsn(name)
    _drop(postgres, name)


def _drop(postgres: Postgres, name: str) -> None:
    asyncio.run(_execute(postgres.dsn(), f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))


async def _migrate(dsn: str, migrations: Path) -> None:
    async with create_pool(dsn, application_name="test-template") as pool:
        await migrate(pool, migrations)


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture
def redis_url(redis: Redis) -> str:
    """URL of the Redis server, after FLUSHALL."""
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
    """Settings of a service that uses that bucket."""
    return S3Settings(
        s3_endpoint=s3.endpoint,
        s3_access_key=SecretStr(s3.access_key),
        s3_secret_key=SecretStr(s3.secret_key),
        s3_bucket=bucket,
    )


@pytest.fixture
def topic_prefix(kafka: Kafka) -> str:
    """A unique prefix for topics and consumer groups."""
    return f"t{uuid.uuid4().hex[:12]}."
