"""Errors of deletion and restoration."""

from __future__ import annotations

from flywheel_common.errors import FailedPrecondition, NotFound


class ModelInUse(FailedPrecondition):
    """The model cannot be deleted: a release of it serves, or a rollout is active."""

    reason = "MODEL_IN_USE"
    remedy = "Abort its rollout, and set `stop_serving` if no gateway needs the model any more."


class ReleaseInUse(FailedPrecondition):
    """The release cannot be deleted: gateways are to serve it."""

    reason = "RELEASE_IN_USE"
    remedy = "Serve another release first, or remove the variant."


class NotRestorable(NotFound):
    """There is no deleted resource with this name, or its artifacts were collected."""

    reason = "NOT_RESTORABLE"
    remedy = "Look up in the audit when it was deleted; after the grace period only a backup has it."
