"""A job as it is stored: state, progress, result."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


class JobState(enum.StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    LOST = "LOST"
    """Every process that ran the job died."""

    @property
    def ended(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is; `total` = 0: not known yet."""

    done: int = 0
    total: int = 0
    unit: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    project: str
    id: str
    kind: str
    request: bytes
    created_at: datetime
    state: JobState = JobState.QUEUED
    progress: Progress = Progress()
    ended_at: datetime | None = None
    error_reason: str = ""
    error_message: str = ""
    training_set: str = ""
    """Resource name of the training set that the job builds; empty for other kinds."""
    result: Mapping[str, object] = field(default_factory=dict)
    """What the handler returned, as JSON values."""
    checkpoint: bytes = b""
    attempt: int = 0
    """Starts so far."""
    cancel_requested: bool = False

    @property
    def name(self) -> str:
        return f"projects/{self.project}/jobs/{self.id}"
