"""Experiments and runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from flywheel_common.names import Pattern, ResourceName
from flywheel_trainer.recipes.outcome import Produced


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


DEFAULT_LEASE_SECONDS = 60.0


class RunState(StrEnum):
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    LOST = "LOST"


ENDED = frozenset(RunState) - {RunState.RUNNING}


@dataclass(frozen=True)
class Experiment:
    """A group of runs that may be compared."""

    name: ExperimentName
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    created_at: datetime | None = None


@dataclass(frozen=True)
class Run:
    """One training run; `metrics` holds the last value of every metric."""

    name: RunName
    experiment: str
    state: RunState = RunState.RUNNING
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    artifacts: tuple[Produced, ...] = ()
    code_version: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    training_set: str = ""
    job: str = ""
    lease_seconds: float = DEFAULT_LEASE_SECONDS
    started_at: datetime | None = None
    ended_at: datetime | None = None
    error_message: str = ""


@dataclass(frozen=True)
class RunUpdate:
    """What UpdateRun adds; no state means heartbeat only."""

    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    artifacts: tuple[Produced, ...] = ()
    state: RunState | None = None
    error_message: str = ""
