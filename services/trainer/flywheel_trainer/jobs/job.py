"""A job on the compute engine, and its states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

from flywheel_common.names import Pattern, ResourceName
from flywheel_trainer.jobs.attempt import Attempt
from flywheel_trainer.jobs.train_spec import TrainSpec
from flywheel_trainer.runs.run import RunName


@dataclass(frozen=True, slots=True)
class JobName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/jobs/{job}")
    project: str
    job: str


class JobState(StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    LOST = "LOST"


FILTER_FIELDS: Mapping[str, tuple[str, ...]] = {
    "state": tuple(JobState),
    "experiment": (),
    "training_set": (),
}
"""Fields of the filter of ListJobs, with their values if they have few."""

ENDED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.LOST})


@dataclass(frozen=True)
class Job:
    """A job as the API shows it."""

    name: JobName
    spec: Any
    """The specification, of the class of the kind (`kinds.Spec`)."""
    run: RunName
    kind: str = TrainSpec.KIND
    state: JobState = JobState.QUEUED
    progress: Mapping[str, Any] = field(default_factory=dict)
    error_reason: str = ""
    error_message: str = ""
    priority: int = 0
    cancel_requested: bool = False
    attempts: tuple[Attempt, ...] = ()
    """Executions on the engine, oldest first; only the last one can be active."""
    pipeline_run: str = ""
    """Name of the pipeline run that submitted the job, with which it is cancelled; or empty."""
    created_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
