"""Errors about experiments."""

from __future__ import annotations

from flywheel_common.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)


class InvalidExperiment(InvalidArgument):
    """Fields of the experiment are missing, out of range, or contradict each other."""

    reason = "INVALID_EXPERIMENT"
    remedy = "Correct the fields that the message lists."


class ExperimentExists(AlreadyExists):
    """The model has an experiment of this name."""

    reason = "EXPERIMENT_EXISTS"
    remedy = "Choose another name; an experiment cannot be changed once it has begun."


class UnknownExperiment(NotFound):
    """The model has no experiment of this name."""

    reason = "UNKNOWN_EXPERIMENT"
    remedy = "List the experiments of the model with ListExperiments."


class ExperimentConcluded(FailedPrecondition):
    """The experiment was concluded before."""

    reason = "EXPERIMENT_CONCLUDED"
    remedy = "Read its verdict with GetExperiment; create a new experiment to test again."


class TooManyExperiments(ResourceExhausted):
    """The model has as many running experiments as it may have."""

    reason = "TOO_MANY_EXPERIMENTS"
    remedy = "Conclude an experiment of the model first."


class VerdictRequired(InvalidArgument):
    """The verdict is not set or unknown."""

    reason = "VERDICT_REQUIRED"
    remedy = "Give EXPERIMENT_VERDICT_SHIP, EXPERIMENT_VERDICT_ROLL_BACK or EXPERIMENT_VERDICT_CONTINUE."
