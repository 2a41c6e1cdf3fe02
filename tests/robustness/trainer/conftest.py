"""Fixtures of the robustness tests of the trainer: those of its integration tests, and a client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import flywheel as fw
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from tests.integration.trainer.conftest import peers, start_trainer, trainer_settings, with_peers, with_ray

__all__ = ["client", "peers", "start_trainer", "trainer_settings", "with_peers", "with_ray"]


@pytest.fixture
async def client(
    trainer_settings: dict[str, str],
    with_peers: dict[str, str],
    with_ray: dict[str, str],
    start_trainer: Callable[[dict[str, str]], Awaitable[Any]],
) -> Any:
    """The SDK's client of a trainer with an experiment."""
    settings = trainer_settings | with_peers | with_ray
    await start_trainer(settings)
    async with fw.Client(trainer=settings["FLYWHEEL_TRAINER_LISTEN"]) as client:
        request = pb.CreateExperimentRequest(parent="projects/default", experiment_id="late")
        await client.trainer.CreateExperiment(request)
        yield client
