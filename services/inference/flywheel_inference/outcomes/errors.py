"""Errors in the content of recorded outcomes."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument


class TooManyOutcomes(InvalidArgument):
    """One call has more outcomes than allowed."""

    reason = "TOO_MANY_OUTCOMES"
    remedy = "Send at most 10,000 outcomes per call."


class MissingPredictionId(InvalidArgument):
    """An outcome has no prediction id."""

    reason = "MISSING_PREDICTION_ID"
    remedy = "Set prediction_id to the id that Predict returned."


class InvalidOutcomeValue(InvalidArgument):
    """An outcome has no name, a value that is not a finite number, or a label that its model cannot have."""

    reason = "INVALID_VALUE"
    remedy = (
        "Send as the outcome `label` 0 or 1 for a BINARY model, a finite number for a REGRESSION model and "
        "the class name for a MULTICLASS model, and a finite number under the name of a business metric for "
        "any other outcome."
    )
