"""Errors of webhooks."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument, NotFound


class InvalidWebhook(InvalidArgument):
    """The URL, secret or format of a webhook is not usable."""

    reason = "INVALID_WEBHOOK"
    remedy = "Give an http(s) URL without user and password, and a secret of 16 to 256 characters or none."


class UnknownWebhook(NotFound):
    """The project has no webhook with this id."""

    reason = "UNKNOWN_WEBHOOK"
    remedy = "Look its name up in the list of webhooks."
