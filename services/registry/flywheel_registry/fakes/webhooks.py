"""Webhooks in memory, and an HTTP client that only keeps what was posted."""

from __future__ import annotations

from collections.abc import Mapping

from flywheel_registry.fakes.tables import MemoryTables
from flywheel_registry.webhooks.ports import DueDelivery
from flywheel_registry.webhooks.webhook import Delivery, Webhook


class MemoryWebhooks:
    """Part of `MemoryRecords`: webhooks."""

    @property
    def _data(self) -> MemoryTables:
        raise NotImplementedError

    async def add_webhook(self, webhook: Webhook) -> bool:
        return self._data.webhooks.setdefault(webhook.name, webhook) is webhook

    async def webhook(self, name: str) -> Webhook | None:
        return self._data.webhooks.get(name)

    async def webhooks(self, project: str, after: str, limit: int) -> list[Webhook]:
        mine = sorted(n for n, w in self._data.webhooks.items() if w.project == project and n > after)
        return [self._data.webhooks[name] for name in mine[:limit]]

    async def delete_webhook(self, name: str) -> None:
        del self._data.webhooks[name]
        for number in [n for n, d in self._data.deliveries.items() if d.webhook == name]:
            del self._data.deliveries[number]

    async def deliveries(self, webhook: str, before: int, limit: int) -> list[Delivery]:
        mine = [d for d in self._data.deliveries.values() if d.webhook == webhook and d.id < before]
        return sorted(mine, key=lambda d: -d.id)[:limit]

    def add_deliveries(self, model: str, kind: str, body: str) -> None:
        """Add a delivery for each webhook that wants this change."""
        for webhook in self._data.webhooks.values():
            if webhook.wants(model, kind):
                number = max(self._data.deliveries, default=0) + 1
                self._data.deliveries[number] = Delivery(number, webhook.name, body)


class IdleWebhookQueue:
    """`WebhookQueue` in which nothing is ever due."""

    async def claim(self, limit: int, lease_seconds: float) -> list[DueDelivery]:
        return []

    async def delivered(self, delivery: int, result: str) -> None:
        """Nothing is due, so nothing is delivered."""

    async def failed(self, delivery: int, result: str, retry_seconds: float | None) -> None:
        """Nothing is due, so nothing fails."""

    async def delete_old(self) -> None:
        """There is nothing to delete."""


class RecordedPosts:
    """`HttpPost` that keeps what was posted and answers `result`."""

    def __init__(self, result: int | str = 200) -> None:
        self.result = result
        self.posts: list[tuple[str, bytes, Mapping[str, str]]] = []

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int | str:
        self.posts.append((url, body, headers))
        return self.result
