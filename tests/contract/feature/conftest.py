"""Contract tests of the feature service (memory and real stores), and tests of its gRPC edge."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import flywheel_feature
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import Pool, create_pool
from tests.support.servers.feature import StreamWorkers, client, environment, server, workers

__all__ = ["StreamWorkers", "client", "environment", "server", "workers"]


@pytest.fixture(params=["memory", "postgres"])
def backing(request: pytest.FixtureRequest) -> str:
    """The kind of store of a contract test."""
    return str(request.param)


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    """A database with the service's tables."""
    async with create_pool(database) as opened:
        await migrate(opened, Path(flywheel_feature.__file__).parent / "migrations")
        yield opened
