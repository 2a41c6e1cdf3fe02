"""Webhooks and their deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from flywheel_common.names import Pattern, ResourceName

STAGE_CHANGED, ROLLOUT_CHANGED, ROLLOUT_ALERT = "STAGE_CHANGED", "ROLLOUT_CHANGED", "ROLLOUT_ALERT"
KINDS = (STAGE_CHANGED, ROLLOUT_CHANGED)
"""What a webhook is told about by default: every change."""
WANTED_KINDS = (*KINDS, ROLLOUT_ALERT)
"""What a webhook can ask for. ROLLOUT_ALERT are the changes of rollouts with `alert`."""


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

    @property
    def id(self) -> str:
        """Its id within the project."""
        return self.name.rpartition("/")[2]

    def wants(self, model: str, kinds: Sequence[str]) -> bool:
        """Return whether it is told about a change of this model that is of these kinds."""
        mine = model.split("/")[1] == self.project and self.model in ("", model)
        return mine and not set(kinds).isdisjoint(self.events)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One change for one webhook. With `ended_at` it was accepted, or given up with `error`."""

    number: int
    event_id: str
    body: str
    attempts: int = 0
    error: str = ""
    created_at: datetime | None = None
    ended_at: datetime | None = None
