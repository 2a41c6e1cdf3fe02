"""Gateways between stand-ins for the registry and the feature service, with and without real backends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from flywheel_local.kafka import Kafka
from flywheel_local.triton import Triton
from tests.support.servers.inference import Deployment, MemoryDeployment


@pytest.fixture
async def deployment(tmp_path: Path, triton: Triton) -> AsyncIterator[Deployment]:
    """With Triton, without Kafka: the prediction log stays in memory."""
    async with AsyncExitStack() as stack:
        started = Deployment(
            stack, triton_url=triton.grpc_url, state_dir=tmp_path / "state", log_drain_seconds=0.1
        )
        await started.start()
        yield started


@pytest.fixture
async def deployment_with_kafka(tmp_path: Path, triton: Triton, kafka: Kafka) -> AsyncIterator[Deployment]:
    async with AsyncExitStack() as stack:
        settings: dict[str, Any] = {"triton_url": triton.grpc_url, "kafka_bootstrap": kafka.bootstrap}
        started = Deployment(stack, state_dir=tmp_path / "state", **settings)
        await started.start()
        yield started


@pytest.fixture
async def memory_deployment() -> AsyncIterator[MemoryDeployment]:
    """Without real backends."""
    async with AsyncExitStack() as stack:
        started = MemoryDeployment(stack)
        await started.start()
        yield started
