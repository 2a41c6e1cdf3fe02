"""Keeps the desired state of all models in memory and streams it to gateways.

Each replica has one. Notifications tell it which models changed, whichever replica changed them. While the
database is unavailable, watchers keep the state that they have.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from flywheel_common.errors import FlywheelError
from flywheel_common.postgres.transactions import Store
from flywheel_common.telemetry.logs import get_logger
from flywheel_registry.serving.desired_state import ServingModel, load_serving_model
from flywheel_registry.serving.ports import RoutingNotifications, ServingRecords

log = get_logger(__name__)

RESYNC_SECONDS = 5.0
"""How often generations are compared with the store, in case a notification was lost."""
RETRY_SECONDS = 0.5


class DesiredStateCache:
    """The desired state of all models: `run` keeps it current, `watch` streams it."""

    def __init__(self, store: Store[ServingRecords], notifications: RoutingNotifications) -> None:
        self._store = store
        self._notifications = notifications
        self._models: dict[str, ServingModel] = {}
        self._changed = asyncio.Event()
        self._loaded = asyncio.Event()

    async def run(self) -> None:
        """Follow routing changes until cancelled."""
        while True:
            try:
                changed = await self._notifications.next(RESYNC_SECONDS)
                if not changed:
                    stored = await self._notifications.generations()
                    known = {name: model.generation for name, model in self._models.items()}
                    changed = {name for name, generation in stored.items() if known.get(name) != generation}
                await self._load(changed)
                self._loaded.set()
            except FlywheelError as error:
                if not error.retryable:
                    raise
                log.warning("desired state may be stale", reason=error.reason)
                await asyncio.sleep(RETRY_SECONDS)

    async def _load(self, names: set[str]) -> None:
        for name in sorted(names):
            async with self._store.transaction() as records:
                model = await load_serving_model(records, name)
            known = self._models.get(name)
            if model is not None and (known is None or model.generation > known.generation):
                self._models[name] = model
                changed, self._changed = self._changed, asyncio.Event()
                changed.set()

    async def watch(self, project: str) -> AsyncIterator[list[ServingModel]]:
        """Yield the whole state of a project (empty: all projects) at once, then after each change of it."""
        await self._loaded.wait()
        last: list[ServingModel] | None = None
        while True:
            changed = self._changed
            state = [model for _, model in sorted(self._models.items()) if project in ("", model.project)]
            if state != last:
                last = state
                yield state
                continue
            with suppress(TimeoutError):
                await changed.wait()
