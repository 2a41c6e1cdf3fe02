"""The port to stored webhooks."""

from __future__ import annotations

from typing import Protocol

from flywheel_registry.webhooks.webhook import Delivery, Webhook


class WebhookRecords(Protocol):
    """Webhooks and deliveries as one transaction sees them.

    The transaction that emits an event also adds a delivery for each webhook that wants it;
    `flywheel_common.webhooks` sends it.
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
        """Return deliveries with a number below `before`, newest first."""
        ...
