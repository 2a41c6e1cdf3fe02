"""Errors for a model that has no route."""

from __future__ import annotations

from flywheel_common.errors import NotFound, Unavailable


class UnknownModel(NotFound):
    """No release serves the model."""

    reason = "UNKNOWN_MODEL"
    remedy = "Register a version, create a release and start its rollout."


class ReleaseNotReady(Unavailable):
    """The model's champion is not loaded yet, or cannot be loaded."""

    reason = "RELEASE_NOT_READY"
    remedy = "Retry; if it persists, read the failures in GetServingStatus."
