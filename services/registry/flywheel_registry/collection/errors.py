"""Errors of the collection of artifacts."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument


class InvalidGrace(InvalidArgument):
    """The grace period is too short for uploads that are running."""

    reason = "INVALID_GRACE"
    remedy = "Leave `grace` unset, or give at least 1 hour."
