"""Webhooks and their deliveries."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from flywheel_common.names import Pattern, ResourceName

STAGE_CHANGED, ROLLOUT_CHANGED = "STAGE_CHANGED", "ROLLOUT_CHANGED"
KINDS = (STAGE_CHANGED, ROLLOUT_CHANGED)


@dataclass(frozen=True, slots=True)
class WebhookName(ResourceName):
    """`projects/{project}/webhooks/{webhook}`."""

    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/webhooks/{webhook}")
    project: str
    webhook: str


@dataclass(frozen=True)
class Webhook:
    """An address that is told about `events` of `model` (empty: of all models of its project)."""

    name: str
    url: str
    secret: str
    model: str = ""
    events: Sequence[str] = KINDS
    created_at: datetime | None = None
    created_by: str = ""

    def __repr__(self) -> str:
        return f"Webhook({self.name})"

    @property
    def project(self) -> str:
        """The id of its project."""
        return self.name.split("/")[1]

    def wants(self, model: str, kind: str) -> bool:
        """Return whether it is told about a change of this kind of this model."""
        return model.split("/")[1] == self.project and self.model in ("", model) and kind in self.events


@dataclass(frozen=True, slots=True)
class Delivery:
    """One change for one webhook. After `given_up_at` it is not tried again."""

    id: int
    webhook: str
    body: str
    try_count: int = 0
    last_result: str = ""
    created_at: datetime | None = None
    delivered_at: datetime | None = None
    given_up_at: datetime | None = None


def signature(secret: str, body: str, seconds: int) -> str:
    """Return the value of the header `Flywheel-Signature` for a body sent at this Unix time."""
    mac = hmac.new(secret.encode(), f"{seconds}.{body}".encode(), hashlib.sha256).hexdigest()
    return f"t={seconds},v1={mac}"
