"""A trainer in the test's process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from flywheel_job.launch import Column
from flywheel_trainer.jobs.ports import TrainingSet
from tests.support.builders.trainer import AT, EXPERIMENT, TRAINING_SET
from tests.support.servers.trainer import MemoryTrainer, serve_in_memory


@pytest.fixture
async def trainer() -> AsyncIterator[MemoryTrainer]:
    """A trainer with an experiment and a training set."""
    async with AsyncExitStack() as stack:
        trainer = await serve_in_memory(stack)
        trainer.feature.known[TRAINING_SET] = TrainingSet(
            TRAINING_SET, "s3://b/t", (), 100, "f" * 64, "", extra_columns=(Column("weight", "FLOAT64"),)
        )
        await trainer.ports.runs.create_experiment(EXPERIMENT, "", b"", AT)
        yield trainer
