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
    """An outcome has no name, or a value that is not a finite number."""

    reason = "INVALID_VALUE"
    remedy = "Name the outcome `label` or after a business metric, and send a finite number."
