"""Errors of experiments and runs."""

from __future__ import annotations

from typing import Self

from flywheel_common.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from flywheel_trainer.runs.run import ExperimentName, RunName, RunState


class UnknownExperiment(NotFound):
    """The experiment does not exist in this project."""

    reason = "UNKNOWN_EXPERIMENT"
    remedy = "Create it with CreateExperiment first."

    @classmethod
    def of(cls, experiment: str) -> Self:
        return cls(f"Experiment {experiment!r} does not exist: create it first.")


class ExperimentExists(AlreadyExists):
    """An experiment of this name exists with another description or other tags."""

    reason = "EXPERIMENT_EXISTS"
    remedy = "Use another experiment_id, or the description and the tags of the existing experiment."

    @classmethod
    def of(cls, name: ExperimentName) -> Self:
        return cls(f"Experiment {str(name)!r} exists with another description or tags.")


class UnknownRun(NotFound):
    """The run does not exist in this project."""

    reason = "UNKNOWN_RUN"
    remedy = "Look its name up with ListRuns."

    @classmethod
    def of(cls, name: RunName) -> Self:
        return cls(f"Run {str(name)!r} does not exist.", run=name)


class RunEnded(FailedPrecondition):
    """The run has ended; `state` is in the metadata."""

    reason = "RUN_ENDED"
    remedy = "Create a new run, or open this one again with ContinueRun."

    @classmethod
    def of(cls, name: RunName, state: RunState) -> Self:
        return cls(
            f"Run {str(name)!r} has ended as {state}: create a new run, or continue it with ContinueRun.",
            state=state,
        )


class ForeignRun(PermissionDenied):
    """The token of an attempt permits metrics of its own job's run only."""

    reason = "FOREIGN_RUN"
    remedy = "Use the run that the specification of the job names."

    @classmethod
    def of(cls, attempt: str, name: RunName) -> Self:
        return cls(f"Attempt {attempt!r} may not write to {str(name)!r}.")


class RunExists(AlreadyExists):
    """Another request created a run with this id."""

    reason = "RUN_EXISTS"
    remedy = "Use another run_id, or leave it empty."

    @classmethod
    def of(cls, name: RunName) -> Self:
        return cls(f"Run {str(name)!r} exists.")


class RunContinued(FailedPrecondition):
    """Another process has continued the run since; `generation` in the metadata is the current one."""

    reason = "RUN_CONTINUED"
    remedy = "Stop this process: it no longer writes the run."

    @classmethod
    def of(cls, name: RunName, generation: int) -> Self:
        return cls(f"Another process has continued run {str(name)!r}.", generation=generation)


class RunDeleted(FailedPrecondition):
    """The run is deleted."""

    reason = "RUN_DELETED"
    remedy = "Restore it with RestoreRun first."

    @classmethod
    def of(cls, name: RunName) -> Self:
        return cls(f"Run {str(name)!r} is deleted.")


class InvalidPurge(InvalidArgument):
    """A purge names too short a time."""

    reason = "INVALID_PURGE"
    remedy = "Purge runs that were deleted at least an hour ago."


class RunActive(FailedPrecondition):
    """A RUNNING run cannot be deleted."""

    reason = "RUN_ACTIVE"
    remedy = "End the run, or wait until its lease has expired."

    @classmethod
    def of(cls, name: RunName) -> Self:
        return cls(f"Run {str(name)!r} is RUNNING.")


class RunOfJob(FailedPrecondition):
    """The run belongs to a job, which alone continues it."""

    reason = "RUN_OF_JOB"
    remedy = "Submit another job; its attempts continue from checkpoints."

    @classmethod
    def of(cls, name: RunName) -> Self:
        return cls(f"Run {str(name)!r} belongs to a job.")


class InvalidParam(InvalidArgument):
    """A param has a key or a value that is too long or contains a null character, or there are too many."""

    reason = "INVALID_PARAM"
    remedy = (
        "Use keys of at most 250 characters and values of at most 8,000, and store longer texts as artifacts."
    )


class InvalidTag(InvalidArgument):
    """A tag has a key or a value that is too long or contains a null character, or there are too many."""

    reason = "INVALID_TAG"
    remedy = "Use keys of at most 250 characters and values of at most 8,000."


class InvalidRunText(InvalidArgument):
    """The name, the notes, the error message or another text of a run is too long or has a null character."""

    reason = "INVALID_RUN_TEXT"
    remedy = "Use at most 250 characters for the name and 64 KiB for other texts."


class InvalidRunTime(InvalidArgument):
    """A start or an end of a run is in the future."""

    reason = "INVALID_RUN_TIME"
    remedy = "Correct the clock of the sender, or leave the time unset."


class InvalidArtifact(InvalidArgument):
    """The name, size or digest of an artifact is not valid, or its bytes do not match them."""

    reason = "INVALID_ARTIFACT"
    remedy = "Use a relative path without . and .. parts, and send all bytes of the file."


class UnknownRunArtifact(NotFound):
    """The run has no artifact of this name that was uploaded to it."""

    reason = "UNKNOWN_RUN_ARTIFACT"
    remedy = "Look the names up with GetRun; artifacts with another uri are read from there."

    @classmethod
    def of(cls, name: RunName, artifact: str) -> Self:
        return cls(f"Run {str(name)!r} has no uploaded artifact {artifact[:250]!r}.")


class InvalidLease(InvalidArgument):
    """The lease of the run is shorter than one second."""

    reason = "INVALID_LEASE"
    remedy = "Set a lease of at least one second, or leave it unset for 60 s."


class InvalidState(InvalidArgument):
    """UpdateRun cannot set this state."""

    reason = "INVALID_STATE"
    remedy = "Set SUCCEEDED, FAILED or CANCELLED to end the run; leave the state unset for a heartbeat."


class UnequalColumns(InvalidArgument):
    """The columns of LogMetrics differ in length."""

    reason = "UNEQUAL_COLUMNS"
    remedy = "Send one key, step, value and time for each point."


class TooManyPoints(InvalidArgument):
    """One LogMetrics call contains too many points."""

    reason = "TOO_MANY_POINTS"
    remedy = "Split the points over several calls of at most 100,000 points."


class InvalidMetricKey(InvalidArgument):
    """A metric key has characters that are not allowed, or is too long."""

    reason = "INVALID_METRIC_KEY"
    remedy = "Use letters, digits, spaces and _.@/{}=,:- in at most 250 characters; do not begin with a sign."


class InvalidFilter(InvalidArgument):
    """The filter of a List method has an unknown field, operator or value, or the wrong form."""

    reason = "INVALID_FILTER"
    remedy = "Join terms such as state=FAILED, params.KEY=VALUE or metrics.KEY>0.7 with AND."


class InvalidOrder(InvalidArgument):
    """The order_by of ListRuns is not valid."""

    reason = "INVALID_ORDER"
    remedy = "Write metrics.KEY, min.KEY, max.KEY or started_at, with - before it for descending order."
