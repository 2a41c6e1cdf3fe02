"""Keeps the desired state of all models in memory and streams it to gateways.

Each replica has one. Notifications tell it which models changed, whichever replica changed them. While the
database is unavailable, watchers keep the state that they have.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from flywheel_common.errors import FlywheelError
from flywheel_common.postgres.transactions import Store
from flywheel_common.telemetry.logs import get_logger
from flywheel_registry.serving.desired_state import (
    Digest,
    ServingChange,
    ServingModel,
    load_serving_model,
)
from flywheel_registry.serving.ports import RoutingNotifications, ServingRecords

log = get_logger(__name__)

RESYNC_SECONDS = 5.0
"""How often generations are compared with the store, in case a notification was lost."""
RETRY_SECONDS = 0.5


class _Watcher:
    """Names of models that changed since a watcher took them; the same name twice is one change."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._changed = asyncio.Event()

    def add(self, name: str) -> None:
        self._names.add(name)
        self._changed.set()

    async def take(self) -> set[str]:
        """Wait for a change and return the names."""
        await self._changed.wait()
        self._changed.clear()
        names, self._names = self._names, set()
        return names


class DesiredStateCache:
    """The desired state of all models: `run` keeps it current, `watch` streams it."""

    def __init__(
        self, store: Store[ServingRecords], notifications: RoutingNotifications, digest: Digest
    ) -> None:
        self._store = store
        self._notifications = notifications
        self._digest = digest
        self._models: dict[str, ServingModel] = {}
        self._watchers: set[_Watcher] = set()
        self._loaded = asyncio.Event()

    async def run(self) -> None:
        """Follow routing changes until cancelled."""
        while True:
            try:
                notified = await self._notifications.next(RESYNC_SECONDS)
                changed = notified or set()
                if not changed:
                    stored = await self._notifications.generations()
                    known = {name: model.generation for name, model in self._models.items()}
                    changed = {name for name, generation in stored.items() if known.get(name) != generation}
                if notified is None:
                    # A rejection changes the warm releases, and no generation.
                    changed |= {name for name, model in self._models.items() if model.warm}
                await self._load(changed)
                self._loaded.set()
            except FlywheelError as error:
                if not error.retryable:
                    raise
                log.warning("desired state may be stale", reason=error.reason)
                await asyncio.sleep(RETRY_SECONDS)

    async def _load(self, names: set[str]) -> None:
        for name in sorted(names):
            known = self._models.get(name)
            async with self._store.transaction() as records:
                model = await load_serving_model(
                    records, name, self._digest, known.digests if known is not None else {}
                )
            if model is None:
                if self._models.pop(name, None) is None:
                    continue
            elif known is not None and (model.generation < known.generation or model == known):
                continue
            else:
                self._models[name] = model
            for watcher in self._watchers:
                watcher.add(name)

    async def watch(self, project: str) -> AsyncIterator[ServingChange]:
        """Yield the whole state of a project (empty: all projects) at once, then each change of it.

        Changes that happen while the caller handles one arrive together in the next.
        """
        await self._loaded.wait()
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            state = [model for _, model in sorted(self._models.items()) if project in ("", model.project)]
            yield ServingChange(state, snapshot=True)
            while True:
                names = sorted(await watcher.take())
                if project:
                    names = [name for name in names if name.startswith(f"projects/{project}/")]
                if names:
                    models = [self._models[name] for name in names if name in self._models]
                    yield ServingChange(models, [name for name in names if name not in self._models])
        finally:
            self._watchers.discard(watcher)
