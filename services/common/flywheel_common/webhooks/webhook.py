"""A webhook, and the signature of what is sent to it."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from urllib.parse import urlsplit

from flywheel_common.names import check_id
from flywheel_common.webhooks.errors import InvalidWebhook

SIGNATURE_HEADER = "Flywheel-Signature"
DELIVERY_HEADER = "Flywheel-Delivery"
"""Id of the event: a repeated delivery has the same one."""
MAX_URL = 2048
SECRET_LENGTHS = range(16, 257)


@dataclass(frozen=True)
class Webhook:
    """Where the changes of a project are sent. `format` names the form of the body; without a secret bodies
    are not signed."""

    project: str
    id: str
    url: str
    format: str
    secret: str = ""

    def checked(self, formats: frozenset[str]) -> Webhook:
        """Return the webhook. Raises InvalidWebhook, InvalidId."""
        check_id(self.id, "id")
        try:
            parts = urlsplit(self.url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid or "@" in parts.netloc or len(self.url) > MAX_URL:
            raise InvalidWebhook(
                f"url {self.url[:100]!r} is not an http(s) URL without user and password.", field="url"
            )
        if self.secret and len(self.secret) not in SECRET_LENGTHS:
            raise InvalidWebhook(
                f"The secret has {len(self.secret)} characters, it must have 16 to 256 or be empty.",
                field="secret",
            )
        if self.format not in formats:
            raise InvalidWebhook(
                f"{self.format!r} is not one of {', '.join(sorted(formats))}.", field="format"
            )
        return self


def signature(secret: str, seconds: int, body: bytes) -> str:
    """Return `t=<seconds>,v1=<hex>`, HMAC-SHA256 of `<seconds>.<body>` with the secret.

    The receiver computes the same, compares in constant time, and refuses old times.
    """
    digest = hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={seconds},v1={digest}"
