"""Errors of webhooks."""

from __future__ import annotations

from flywheel_common.errors import AlreadyExists, FailedPrecondition


class WebhookExists(AlreadyExists):
    """A webhook with this id exists in the project."""

    reason = "WEBHOOK_EXISTS"
    remedy = "Delete it first, or choose another id."


class WebhookHostNotAllowed(FailedPrecondition):
    """The settings of the registry do not allow webhooks to this host."""

    reason = "WEBHOOK_HOST_NOT_ALLOWED"
    remedy = "Let the operator add the host to FLYWHEEL_REGISTRY_WEBHOOK_HOSTS."
