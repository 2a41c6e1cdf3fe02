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


class InvalidThreshold(InvalidArgument):
    """The decision threshold is not a probability."""

    reason = "INVALID_THRESHOLD"
    remedy = "Send a threshold from 0 to 1."


class InvalidCalibration(InvalidArgument):
    """The calibration has values that are not finite, not in order or out of range."""

    reason = "INVALID_CALIBRATION"
    remedy = "Send finite numbers; isotonic x must increase and y must not decrease, within 0 to 1."


class InvalidFallback(InvalidArgument):
    """The fallback's default score or maximum age is out of range."""

    reason = "INVALID_FALLBACK"
    remedy = "Send a default score from 0 to 1 and a positive age of at most ten years, or leave them unset."
