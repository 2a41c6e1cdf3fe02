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
    """The run has ended, or it is LOST because its lease expired; `state` is in the metadata."""

    reason = "RUN_ENDED"
    remedy = "Create a new run; send heartbeats within the lease."

    @classmethod
    def of(cls, name: RunName, state: RunState) -> Self:
        return cls(f"Run {str(name)!r} has ended as {state}: create a new run.", state=state)


class AttemptEnded(FailedPrecondition):
    """The attempt of a job that sends this has ended: the job has another attempt, or has ended."""

    reason = "ATTEMPT_ENDED"
    remedy = "Stop the processes of this attempt."

    @classmethod
    def of(cls, attempt: str) -> Self:
        return cls(f"Attempt {attempt!r} has ended: its points are not stored.")


class ForeignRun(PermissionDenied):
    """The token of an attempt permits metrics of its own job's run only."""

    reason = "FOREIGN_RUN"
    remedy = "Use the run that the specification of the job names."

    @classmethod
    def of(cls, attempt: str, name: RunName) -> Self:
        return cls(f"Attempt {attempt!r} may not write to {str(name)!r}.")


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
    remedy = "Use letters, digits and _.@/{}=,- in at most 200 characters, beginning with a letter or digit."


class InvalidFilter(InvalidArgument):
    """The filter of a List method has an unknown field, operator or value, or the wrong form."""

    reason = "INVALID_FILTER"
    remedy = "Join terms such as state=FAILED, params.KEY=VALUE or metrics.KEY>0.7 with AND."


class InvalidOrder(InvalidArgument):
    """The order_by of ListRuns is not valid."""

    reason = "INVALID_ORDER"
    remedy = "Write metrics.KEY, or -metrics.KEY for descending order."
