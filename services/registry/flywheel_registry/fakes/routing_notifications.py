"""Notifications of routing changes in memory."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from flywheel_registry.fakes.store import MemoryStore


class MemoryRoutingNotifications:
    """`RoutingNotifications` of a `MemoryStore`."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._changed: set[str] = set()
        self._woken = asyncio.Event()
        self._listening = False

    async def next(self, timeout_seconds: float) -> set[str] | None:
        if not self._listening:
            self._listening = True
            self._store.on_routing_change.append(self._on_change)
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._woken.wait()
        self._woken.clear()
        found, self._changed = self._changed, set()
        return found

    async def generations(self) -> dict[str, int]:
        return self._store.generations()

    def _on_change(self, models: set[str]) -> None:
        self._changed |= models
        self._woken.set()
