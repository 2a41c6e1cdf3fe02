"""Errors that end a training job; their reasons are stored as the job's `error_reason`."""

from __future__ import annotations

from flywheel_common.errors import FailedPrecondition


class UnusableTrainingSet(FailedPrecondition):
    """The recipe cannot train on this training set; the message names the column or the cause."""

    reason = "UNUSABLE_TRAINING_SET"
    remedy = (
        "Build a training set with 0/1 labels of both classes, at least 10 rows, and supported feature types."
    )


class TooFewEventTimes(FailedPrecondition):
    """The rows have too few distinct event times to be split into training, calibration and evaluation."""

    reason = "TOO_FEW_EVENT_TIMES"
    remedy = "Build a training set whose labelled rows have at least 3 distinct event times."


class TooFewTrainingRows(FailedPrecondition):
    """The training rows, without the holdout, are fewer than the workers."""

    reason = "TOO_FEW_TRAINING_ROWS"
    remedy = "Use fewer workers, a smaller holdout_fraction, or a training set with more rows."


class TrainingFailed(FailedPrecondition):
    """The training code raised an exception; the message is that exception."""

    reason = "TRAINING_FAILED"
    remedy = "Read the job's log, correct the hyperparameters or the training set, and submit the job again."
