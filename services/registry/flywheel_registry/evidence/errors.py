"""Errors of evidence."""

from __future__ import annotations

from flywheel_common.errors import NotFound, PermissionDenied


class UnknownEvidence(NotFound):
    """The model has no evidence with this number."""

    reason = "UNKNOWN_EVIDENCE"
    remedy = "Take the name from an audit entry, a rollout's history or the answer of PromoteModelVersion."


class EvidenceProducerRequired(PermissionDenied):
    """The caller is not one of the services whose measured values count as evidence."""

    reason = "EVIDENCE_PRODUCER_REQUIRED"
    remedy = "Let the operator add the caller's name to FLYWHEEL_REGISTRY_EVIDENCE_PRODUCERS."
