"""Experiments and training runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from flywheel_common.names import Pattern, ResourceName
from flywheel_common.system_metrics import SYSTEM
from flywheel_job.outcome import Artifact

DEFAULT_LEASE_SECONDS = 60.0
"""Lease of a run whose creator gives none; `runs.lease` says when it expires."""


@dataclass(frozen=True, slots=True)
class ExperimentName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/experiments/{experiment}")
    project: str
    experiment: str


@dataclass(frozen=True, slots=True)
class RunName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/runs/{run}")
    project: str
    run: str


class RunState(StrEnum):
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    LOST = "LOST"
    """No heartbeat within the lease, or its job was lost. Without a job: RUNNING again when it reports."""


@dataclass(frozen=True)
class Experiment:
    """A group of comparable runs."""

    name: ExperimentName
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    created_at: datetime | None = None


@dataclass(frozen=True)
class MetricSummary:
    """Extremes of a metric; NaN if every value is NaN."""

    min: float
    max: float
    last_step: int


@dataclass(frozen=True)
class Run:
    """One training run; `metrics` holds the last value of every metric."""

    name: RunName
    experiment: str
    state: RunState = RunState.RUNNING
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    artifacts: tuple[Artifact, ...] = ()
    code_version: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    training_set: str = ""
    job: str = ""
    lease_seconds: float = DEFAULT_LEASE_SECONDS
    started_at: datetime | None = None
    ended_at: datetime | None = None
    error_message: str = ""
    display_name: str = ""
    notes: str = ""
    parent_run: str = ""
    """Name of the run that this one is a part of, as that of the TUNE job of a trial, or empty."""
    deleted_at: datetime | None = None
    summaries: Mapping[str, MetricSummary] = field(default_factory=dict)
    generation: int = 1
    """Increases when another process continues the run."""

    @property
    def results(self) -> dict[str, float]:
        """The metrics that describe a model: the finite ones that are not of the machine."""
        return {
            key: value
            for key, value in self.metrics.items()
            if math.isfinite(value) and not key.startswith(SYSTEM)
        }


@dataclass(frozen=True)
class RunUpdate:
    """Additions of an UpdateRun call, which is also a heartbeat; a `state` ends the run.

    `generation` 0: not checked. `ended_at` None: now.
    """

    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    artifacts: tuple[Artifact, ...] = ()
    state: RunState | None = None
    error_message: str = ""
    generation: int = 0
    ended_at: datetime | None = None


@dataclass(frozen=True)
class RunEdit:
    """Changes of an EditRun call; None: not changed."""

    display_name: str | None = None
    notes: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    removed_tags: tuple[str, ...] = ()
