"""Webhooks in memory; nothing is sent."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel_registry.fakes.tables import MemoryTables
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
        mine = [w for w in self._data.webhooks.values() if w.project == project and w.id > after]
        return sorted(mine, key=lambda w: w.id)[:limit]

    async def delete_webhook(self, name: str) -> None:
        del self._data.webhooks[name]
        for key in [key for key in self._data.deliveries if key[0] == name]:
            del self._data.deliveries[key]

    async def deliveries(self, webhook: str, before: int, limit: int) -> list[Delivery]:
        mine = [d for key, d in self._data.deliveries.items() if key[0] == webhook and d.number < before]
        return sorted(mine, key=lambda d: -d.number)[:limit]

    def add_deliveries(self, model: str, kinds: Sequence[str], body: str) -> None:
        """Add a delivery for each webhook that wants this change."""
        for webhook in self._data.webhooks.values():
            if webhook.wants(model, kinds):
                number = max((n for _, n in self._data.deliveries), default=0) + 1
                self._data.deliveries[webhook.name, number] = Delivery(number, str(number), body)
