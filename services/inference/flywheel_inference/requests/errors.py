"""Errors in the content of a prediction request."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument, ResourceExhausted


class MissingJoinKey(InvalidArgument):
    """A join key of the model's feature set is absent or null in entity_keys."""

    reason = "MISSING_JOIN_KEY"
    remedy = "Send every join key that GetFeatureSet lists for the feature set, with a value."


class MissingRequestField(InvalidArgument):
    """A request field of the model's feature set is absent in request_fields."""

    reason = "MISSING_REQUEST_FIELD"
    remedy = "Send every request field that GetFeatureSet lists; send a Value without a kind for null."


class UnknownVariant(InvalidArgument):
    """The header flywheel-variant names a variant that the model does not have now."""

    reason = "UNKNOWN_VARIANT"
    remedy = "Send champion, challenger or the name of a variant of SetModelVariants, or no header."


class InvalidPredictionId(InvalidArgument):
    """The prediction id is longer than allowed."""

    reason = "INVALID_PREDICTION_ID"
    remedy = "Send at most 128 characters, or leave the id empty to get one."


class TooManyBytes(ResourceExhausted):
    """The gateway already has its maximum number of predictions, batches or bytes in flight."""

    reason = "OVERLOADED"
    remedy = "Retry after the delay in RetryInfo, with exponential backoff."
