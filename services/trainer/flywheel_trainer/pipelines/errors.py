"""Errors of pipeline runs."""

from __future__ import annotations

from flywheel_common.errors import NotFound
from flywheel_trainer.pipelines.pipeline_run import (
    PipelineRunName,
)


def unknown_pipeline_run(name: PipelineRunName) -> NotFound:
    return NotFound(
        f"Pipeline run {str(name)!r} does not exist.", reason="UNKNOWN_PIPELINE_RUN", pipeline_run=name
    )
