"""Errors of promotion."""

from __future__ import annotations

from flywheel_common.errors import FailedPrecondition, InvalidArgument


class NoRelease(FailedPrecondition):
    """The version has no release, so promotion to PRODUCTION would leave nothing to serve."""

    reason = "NO_RELEASE"
    remedy = "Create a release of the version with CreateRelease first."


class EvidenceConflict(InvalidArgument):
    """A value in the request's evidence differs from the metric registered with the version."""

    reason = "EVIDENCE_CONFLICT"
    remedy = "Leave the value out, or send it under another name."
