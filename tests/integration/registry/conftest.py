"""A registry in this process on real PostgreSQL and S3, and a stand-in for the monitor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from flywheel_local.s3 import S3
from flywheel_registry.config import RegistrySettings
from tests.support.builders.registry import ModelClient
from tests.support.peers.registry import FakeMonitor, serving_monitor
from tests.support.servers.registry import registry_settings, running_registry


@pytest_asyncio.fixture
async def monitor() -> AsyncIterator[FakeMonitor]:
    async with serving_monitor() as fake:
        yield fake


@pytest.fixture
def settings(database: str, bucket: str, s3: S3) -> Callable[..., RegistrySettings]:
    """Returns settings on the real backends; keyword arguments override them.

    Kafka is down except in tests about events: this must not stop anything else.
    """

    def make(**overrides: Any) -> RegistrySettings:
        backends: dict[str, Any] = {
            "postgres_dsn": database,
            "s3_endpoint": s3.endpoint,
            "s3_access_key": s3.access_key,
            "s3_secret_key": s3.secret_key,
            "s3_bucket": bucket,
        }
        return registry_settings(**{**backends, **overrides})

    return make


@pytest_asyncio.fixture
async def registry(settings: Callable[..., RegistrySettings], monitor: FakeMonitor) -> AsyncIterator[Any]:
    async with running_registry(settings(monitor_address=monitor.address)) as stub:
        yield stub


@pytest_asyncio.fixture
async def client(registry: Any) -> ModelClient:
    return ModelClient(registry)
