"""One execution of a job on the compute engine, and how long it has made no progress."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from flywheel_trainer.jobs.limits import Limits

MAX_GAP_SECONDS = 10.0
"""Longest time between two checks that counts as time without a step. A longer gap means that the supervisor,
its database or the engine was away, in which time no step could be seen."""


@dataclass(frozen=True)
class Attempt:
    """Attempt `number` (from 1) of a job. It is active until `ended_at` is set."""

    number: int
    engine_id: str
    created_at: datetime | None = None
    started_at: datetime | None = None
    """When the engine had accepted it."""
    ended_at: datetime | None = None
    error_reason: str = ""
    error_message: str = ""


@dataclass(frozen=True)
class Watch:
    """What the supervisor has seen of an active attempt; it is stored, so that a restart does not reset
    it."""

    mark: int = -1
    """A number that grows with each step of any metric."""
    idle_seconds: float = 0.0
    """Time without a new mark, without the time in which no check was possible."""
    checked_at: datetime | None = None
    stopping_reason: str = ""
    """Why the supervisor stops the attempt: JOB_TIMEOUT, JOB_STALLED or empty."""


def engine_id(job: str, number: int) -> str:
    """The id under which the engine knows an attempt."""
    return f"{job}-{number}"


def watched(watch: Watch, mark: int, now: datetime) -> Watch:
    """The watch after a check that found the attempt running with this mark."""
    if mark != watch.mark or watch.checked_at is None:
        return replace(watch, mark=mark, idle_seconds=0.0, checked_at=now)
    gap = max(0.0, (now - watch.checked_at).total_seconds())
    return replace(watch, idle_seconds=watch.idle_seconds + min(gap, MAX_GAP_SECONDS), checked_at=now)


def exceeded_limit(attempt: Attempt, watch: Watch, limits: Limits, now: datetime) -> str:
    """The reason why a running attempt must be stopped, or an empty string."""
    if attempt.started_at and now - attempt.started_at > timedelta(seconds=limits.timeout_seconds):
        return "JOB_TIMEOUT"
    return "JOB_STALLED" if watch.idle_seconds > limits.stall_seconds else ""


def retry_at(attempts: int, ended_at: datetime) -> datetime:
    """When the attempt after `attempts` lost ones may start: after a pause that doubles, of at most 60 s."""
    return ended_at + timedelta(seconds=min(60.0, 2.0 ** min(attempts, 6)))
