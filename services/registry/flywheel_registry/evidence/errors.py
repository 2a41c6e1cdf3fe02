"""Errors of evidence."""

from __future__ import annotations

from flywheel_common.errors import NotFound


class UnknownEvidence(NotFound):
    """The model has no evidence with this number."""

    reason = "UNKNOWN_EVIDENCE"
    remedy = "Take the name from an audit entry, a rollout's history or the answer of PromoteModelVersion."
