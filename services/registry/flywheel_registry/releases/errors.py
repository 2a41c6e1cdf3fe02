"""Errors of releases."""

from __future__ import annotations

from flywheel_common.errors import FailedPrecondition, InvalidArgument, NotFound


class UnknownRelease(NotFound):
    """The model has no release with this number."""

    reason = "UNKNOWN_RELEASE"
    remedy = "Look the number up with ListReleases."


class WrongModel(InvalidArgument):
    """The named version or release belongs to another model than the request."""

    reason = "WRONG_MODEL"
    remedy = "Name a version or release of the model in the request."


class RejectedVersion(FailedPrecondition):
    """The model version is REJECTED and can neither be released nor served again."""

    reason = "REJECTED_VERSION"
    remedy = "Use another version; for a rollback, name another release in `to_release`."


class FeatureSetMismatch(FailedPrecondition):
    """The feature set of the release does not have the inputs of its version."""

    reason = "FEATURE_SET_MISMATCH"
    remedy = "Name a feature set that has every input with its type, or none to take that of the version."


class InvalidThreshold(InvalidArgument):
    """A threshold is not a probability, or belongs to a segment that the release does not have."""

    reason = "INVALID_THRESHOLD"
    remedy = "Send thresholds from 0 to 1, and segments as `key=value` with a key of segment_keys."


class InvalidServingPolicy(InvalidArgument):
    """The serving policy has a limit out of range, a rule without a condition, or no cached predictions."""

    reason = "INVALID_SERVING_POLICY"
    remedy = "Keep the limits in the comments of ServingPolicy; set fallback.cached_max_age for a cost mode."


class InvalidFeaturePolicy(InvalidArgument):
    """A feature policy names no input of the signature, repeats one, or has no default of its type."""

    reason = "INVALID_FEATURE_POLICY"
    remedy = "Send one policy per input, and for DEFAULT a default_value of the input's type and size."


class InvalidCalibration(InvalidArgument):
    """The calibration does not fit the output, or has values that are not finite, in order and in range."""

    reason = "INVALID_CALIBRATION"
    remedy = "Send finite numbers; isotonic x must increase and y must not decrease, within 0 to 1."


class InvalidFallback(InvalidArgument):
    """The fallback's default does not fit the output, or its maximum age is out of range."""

    reason = "INVALID_FALLBACK"
    remedy = "Send a default of the output's size and range and a positive age of at most ten years, or none."
