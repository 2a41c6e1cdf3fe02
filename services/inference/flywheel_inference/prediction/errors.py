"""Errors of the Predict use case."""

from __future__ import annotations

from flywheel_common.errors import ResourceExhausted


class TooManyPredictions(ResourceExhausted):
    """The gateway already has its maximum number of predictions in flight."""

    reason = "OVERLOADED"
    remedy = "Retry after the delay in RetryInfo, with exponential backoff."
