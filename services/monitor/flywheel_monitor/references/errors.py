"""Errors about versions and their references."""

from __future__ import annotations

from flywheel_common.errors import NotFound, Unavailable


class NoPredictions(NotFound):
    """The model or version has made no predictions in the requested range."""

    reason = "NO_PREDICTIONS"
    remedy = "Widen the time range, or wait until predictions arrive and a window closes."


class NoReference(NotFound):
    """The version has no training profile to compare its features with."""

    reason = "NO_REFERENCE"
    remedy = "Register the version with a training set that has a profile of its features."


class PeerFailed(Unavailable):
    """The registry or the feature service failed with an error that a retry alone does not resolve."""

    reason = "PEER_FAILED"
    remedy = "Fix the cause named by `peer_reason`; the monitor retries and loses no predictions."


class ReferencePending(Unavailable):
    """The reference of a version cannot be fetched yet; its predictions wait."""

    reason = "REFERENCE_PENDING"
    remedy = "Start the registry and the feature service; the monitor retries and loses no predictions."
