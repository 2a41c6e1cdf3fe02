"""Errors of trials."""

from __future__ import annotations

from typing import Self

from flywheel_common.errors import FailedPrecondition, InvalidArgument, NotFound


class NoTuneJob(FailedPrecondition):
    """The job is of another kind and has no trials."""

    reason = "NO_TUNE_JOB"
    remedy = "Name a job whose kind is TUNE."

    @classmethod
    def of(cls, name: object) -> Self:
        return cls(f"Job {str(name)!r} is no TUNE job.", job=name)


class UnknownTrial(NotFound):
    """The job has no trial of this number."""

    reason = "UNKNOWN_TRIAL"
    remedy = "Look the number up with ListTrials."

    @classmethod
    def of(cls, name: object) -> Self:
        return cls(f"Trial {str(name)!r} does not exist.", trial=name)


class InvalidTrial(InvalidArgument):
    """The record of a trial has no state, a number out of order, or an outcome that is none."""

    reason = "INVALID_TRIAL"
    remedy = "Only the driver of a TUNE job records trials; use the same version of it and of the trainer."


class NoModel(FailedPrecondition):
    """The trial has exported no model, so there is nothing to register."""

    reason = "NO_MODEL"
    remedy = "Call `ctx.export` in the training code, and name a trial that succeeded."
