"""Errors of the Predict use case."""

from __future__ import annotations

from flywheel_common.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted


class TooManyPredictions(ResourceExhausted):
    """The gateway already has its maximum number of predictions, batches or bytes in flight."""

    reason = "OVERLOADED"
    remedy = "Retry after the delay in RetryInfo, with exponential backoff."


class TooManyRequests(InvalidArgument):
    """A batch has more requests than a call may have."""

    reason = "TOO_MANY_REQUESTS"
    remedy = "Split the batch; the limit is in the metadata field `limit`."


class ResponseTooLarge(ResourceExhausted):
    """The answers to the requests of a batch before this one fill the response."""

    reason = "RESPONSE_TOO_LARGE"
    remedy = "Send the request again in a smaller batch, or without include_features."


class NotReached(DeadlineExceeded):
    """The request of a batch was not begun, because the deadline of the call was near."""

    reason = "NOT_REACHED"
    remedy = "Send the request again; use smaller batches or longer deadlines."
