"""How an attempt ended: the rules that turn the engine's state and the outcomes of an attempt into an
ending."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from flywheel_common.errors import FlywheelError
from flywheel_job.errors import WorkerLost
from flywheel_job.outcome import Outcome
from flywheel_trainer.jobs.engine import EngineJob, EngineState
from flywheel_trainer.jobs.errors import (
    CancelledOnRequest,
    JobCrashed,
    JobKilled,
    JobLost,
    JobStalled,
    JobStopped,
    JobTimeout,
)
from flywheel_trainer.jobs.job import JobState

RETRYABLE_REASONS = frozenset({JobLost.reason, JobKilled.reason, WorkerLost.reason})
"""Reasons that another attempt can cure. All others are errors of the job itself."""
MESSAGE_CHARACTERS = 4000
KILL_SIGNAL = 9
SHELL_SIGNAL_BASE = 128
"""A shell reports the death of its command by signal n as exit status 128 + n."""
LAST_LOG_LINES = 40


@dataclass(frozen=True)
class Ending:
    """The state of the job if no other attempt follows, the outcome, and whether another attempt may
    follow."""

    state: JobState
    outcome: Outcome
    may_retry: bool = False


@dataclass(frozen=True)
class Evidence:
    """Everything that is known about an attempt that has ended on the engine."""

    engine: EngineJob
    success: Outcome | None = None
    """Outcome of rank 0."""
    failure: Outcome | None = None
    """Outcome of the driver."""
    cancel_requested: bool = False
    stopping_reason: str = ""
    """Why the supervisor stopped it: JOB_TIMEOUT, JOB_STALLED or empty."""
    log_tail: str = ""


def ending_of(evidence: Evidence) -> Ending:
    """The ending of an attempt.

    Rank 0 writes a success as its last act, so later failures of other processes do not change it.
    """
    if evidence.success is not None and evidence.success.succeeded:
        return Ending(JobState.SUCCEEDED, storable(evidence.success))
    if evidence.cancel_requested:
        return Ending(JobState.CANCELLED, Outcome.failed(CancelledOnRequest("Cancelled on request.")))
    stopped = _stopped_by_supervisor(evidence.stopping_reason)
    if stopped is not None:
        return Ending(JobState.FAILED, storable(Outcome.failed(stopped)))
    outcome = evidence.failure or Outcome.failed(_without_outcome(evidence))
    lost = outcome.error_reason in RETRYABLE_REASONS
    state = JobState.LOST if outcome.error_reason == JobLost.reason else JobState.FAILED
    return Ending(state, storable(outcome), may_retry=lost)


def _stopped_by_supervisor(reason: str) -> FlywheelError | None:
    if reason == JobTimeout.reason:
        return JobTimeout("The attempt took longer than the timeout of the job and was stopped.")
    if reason == JobStalled.reason:
        return JobStalled("The job made no step for its stall timeout and was stopped.")
    return None


def _without_outcome(evidence: Evidence) -> FlywheelError:
    engine = evidence.engine
    if engine.state is EngineState.UNKNOWN:
        return JobLost(
            "The compute engine no longer knows the job, and it left no outcome: its machine was lost."
        )
    message = "\n".join(part for part in (engine.message[:500], evidence.log_tail) if part).strip()
    if engine.machine_lost:
        return JobLost(f"The engine lost the job: {message}")
    if engine.state is EngineState.STOPPED:
        return JobStopped("The job was stopped on the compute engine, not by this service.")
    if engine.exit_code in (-KILL_SIGNAL, SHELL_SIGNAL_BASE + KILL_SIGNAL):
        return JobKilled(f"The job's process was killed (signal 9), for example for memory. {message}")
    return JobCrashed(f"The job's process ended without an outcome. {message}")


def storable(outcome: Outcome) -> Outcome:
    """The outcome without characters that a database cannot store, and with bounded messages.

    Outcomes and logs are written by code of users, and may contain any byte.
    """
    return replace(
        outcome,
        error_reason=_text(outcome.error_reason)[:100],
        error_message=_text(outcome.error_message)[:MESSAGE_CHARACTERS],
        artifacts=tuple(
            replace(a, name=_text(a.name), sha256=_text(a.sha256), uri=_text(a.uri))
            for a in outcome.artifacts
        ),
        points=tuple(replace(p, key=_text(p.key)) for p in outcome.points),
        params=_texts(outcome.params),
        code_version=_text(outcome.code_version),
        environment=_texts(outcome.environment),
    )


def last_lines(log: bytes) -> str:
    """The end of a log as text, for an error message."""
    return "\n".join(log.decode(errors="replace").strip().split("\n")[-LAST_LOG_LINES:])


def _texts(mapping: Any) -> dict[str, str]:
    return {_text(key): _text(value) for key, value in mapping.items()}


def _text(value: Any) -> str:
    """PostgreSQL stores neither NUL nor lone surrogates."""
    return str(value).replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
