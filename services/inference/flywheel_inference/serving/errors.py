"""Errors for a model that has no route."""

from __future__ import annotations

from flywheel_common.errors import FailedPrecondition, NotFound, Unavailable


class UnknownModel(NotFound):
    """No release serves the model."""

    reason = "UNKNOWN_MODEL"
    remedy = "Register a version, create a release and start its rollout."


class NoDesiredState(Unavailable):
    """The gateway has neither a saved state nor an answer of the registry, so it does not know its models."""

    reason = "NO_DESIRED_STATE"
    remedy = "Start the registry, or check the gateway's registry_address; the gateway recovers by itself."


class StateInUse(FailedPrecondition):
    """Another gateway process uses the state folder."""

    reason = "STATE_IN_USE"
    remedy = "Set state_dir to a folder of its own for each gateway."


class ReleaseNotReady(Unavailable):
    """The model's champion is not loaded yet or cannot be loaded, or its first rollout has not ended."""

    reason = "RELEASE_NOT_READY"
    remedy = "Retry; if it persists, read the failures in GetServingStatus."
