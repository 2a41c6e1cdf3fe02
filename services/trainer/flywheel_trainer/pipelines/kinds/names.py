"""Checks of the names in specifications of steps."""

from __future__ import annotations

from flywheel_trainer.jobs.errors import InvalidSpec
from flywheel_trainer.pipelines.pipeline_run import ModelName


def check_model(model: str, project: str) -> None:
    """Raises InvalidSpec, InvalidName."""
    if ModelName.parse(model).project != project:
        raise InvalidSpec("model belongs to another project.", field="model")
