"""Errors of webhooks."""

from __future__ import annotations

from flywheel_common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound


class UnknownWebhook(NotFound):
    """The project has no webhook with this name."""

    reason = "UNKNOWN_WEBHOOK"
    remedy = "Look the name up with ListWebhooks."


class WebhookExists(AlreadyExists):
    """A webhook with this id exists in the project."""

    reason = "WEBHOOK_EXISTS"
    remedy = "Delete it first, or choose another id."


class InvalidWebhook(InvalidArgument):
    """The URL, the model, the events or the secret of the webhook is invalid."""

    reason = "INVALID_WEBHOOK"
    remedy = "Use an http or https URL without credentials, and a secret of 16 to 256 characters."


class WebhookHostNotAllowed(FailedPrecondition):
    """The settings of the registry do not allow webhooks to this host."""

    reason = "WEBHOOK_HOST_NOT_ALLOWED"
    remedy = "Let the operator add the host to FLYWHEEL_REGISTRY_WEBHOOK_HOSTS."
