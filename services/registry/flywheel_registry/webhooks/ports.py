"""The ports to stored webhooks, to the queue of deliveries, and to HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from flywheel_registry.webhooks.webhook import Delivery, Webhook


class WebhookRecords(Protocol):
    """Webhooks and deliveries as one transaction sees them.

    The transaction that emits an event also adds a delivery for each webhook that wants it.
    """

    async def add_webhook(self, webhook: Webhook) -> bool:
        """Add a webhook; return False when the name is taken."""
        ...

    async def webhook(self, name: str) -> Webhook | None: ...

    async def webhooks(self, project: str, after: str, limit: int) -> list[Webhook]:
        """Return webhooks by name, beginning after the name `after`."""
        ...

    async def delete_webhook(self, name: str) -> None:
        """Delete a webhook with its deliveries."""
        ...

    async def deliveries(self, webhook: str, before: int, limit: int) -> list[Delivery]:
        """Return deliveries with an id below `before`, newest first."""
        ...


@dataclass(frozen=True)
class DueDelivery:
    """A delivery that this process is to try now; `try_count` counts this try."""

    id: int
    url: str
    secret: str
    body: str
    try_count: int

    def __repr__(self) -> str:
        return f"DueDelivery({self.id})"


class WebhookQueue(Protocol):
    """The deliveries that are due, shared by all replicas. Raises Unavailable."""

    async def claim(self, limit: int, lease_seconds: float) -> Sequence[DueDelivery]:
        """Return deliveries that are due; others do not get them before the lease has passed.

        If this process dies, they are due again after the lease.
        """
        ...

    async def delivered(self, delivery: int, result: str) -> None:
        """Record that a delivery was accepted."""
        ...

    async def failed(self, delivery: int, result: str, retry_seconds: float | None) -> None:
        """Record a failed try; without `retry_seconds` it was the last one."""
        ...

    async def delete_old(self) -> None:
        """Delete what was delivered or given up more than 7 days ago."""
        ...


class HttpPost(Protocol):
    """Sends one HTTP POST."""

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int | str:
        """Return the HTTP status, or a sentence when there is none. Follows no redirect, never raises."""
        ...
