"""Errors of promotion."""

from __future__ import annotations

from flywheel_common.errors import FailedPrecondition


class NoRelease(FailedPrecondition):
    """The version has no release, so promotion to PRODUCTION would leave nothing to serve."""

    reason = "NO_RELEASE"
    remedy = "Create a release of the version with CreateRelease first."


class OwnVersion(FailedPrecondition):
    """The author of a version cannot approve it."""

    reason = "OWN_VERSION"
    remedy = "Ask another person with a role that may approve."
