"""The desired state of all models, kept in memory by every replica and streamed to its gateways.

PostgreSQL tells of changes by NOTIFY, whichever replica made them. A lost connection is made again and everything is
read anew; in between, watchers keep what they have.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Protocol

from flywheel_common.errors import FlywheelError
from flywheel_common.telemetry.logs import get_logger
from flywheel_registry import serving
from flywheel_registry.ports import Records, Store
from flywheel_registry.resources import ServedRelease, ServingModel

log = get_logger(__name__)

RESYNC_SECONDS = 5.0
"""Generations are compared with the store this often, should a notice be lost."""
RETRY_SECONDS = 0.5


class Notices(Protocol):
    """Says which models changed their routing."""

    async def next(self, timeout_seconds: float) -> set[str] | None:
        """Models that changed since the last call, empty after the timeout; None when notices may have been lost (a new
        connection): read everything. Raises Unavailable."""
        ...

    async def generations(self) -> dict[str, int]:
        """Model → generation, as stored. Raises Unavailable."""
        ...


class ServingBoard:
    """`run` keeps `models` current; `watch` streams it."""

    def __init__(self, store: Store, notices: Notices) -> None:
        self._store = store
        self._notices = notices
        self.models: dict[str, ServingModel] = {}
        self._changed = asyncio.Event()
        self._loaded = asyncio.Event()

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                changed = await self._notices.next(RESYNC_SECONDS)
                if not changed:
                    stored = await self._notices.generations()
                    known = {name: model.generation for name, model in self.models.items()}
                    changed = {name for name, generation in stored.items() if known.get(name) != generation}
                await self._load(changed)
                self._loaded.set()
            except FlywheelError as error:
                if not error.retryable:
                    raise
                log.warning("desired state may be old", reason=error.reason)
                await asyncio.sleep(RETRY_SECONDS)

    async def _load(self, names: set[str]) -> None:
        for name in sorted(names):
            async with self._store.transaction() as records:
                model = await load_serving(records, name)
            known = self.models.get(name)
            if model is not None and (known is None or model.generation > known.generation):
                self.models[name] = model
                changed, self._changed = self._changed, asyncio.Event()
                changed.set()

    async def watch(self, project: str) -> AsyncIterator[list[ServingModel]]:
        """The whole state of a project (empty: of all) at once, then at every change of it."""
        await self._loaded.wait()
        last: list[ServingModel] | None = None
        while True:
            changed = self._changed
            state = [model for _, model in sorted(self.models.items()) if project in ("", model.project)]
            if state != last:
                last = state
                yield state
                continue
            with suppress(TimeoutError):
                await changed.wait()


async def load_serving(records: Records, name: str) -> ServingModel | None:
    """One model's desired state; None while nothing serves."""
    routing = await records.routing(name)
    if routing.champion is None:
        return None
    spans = await records.spans(name)

    async def served(number: int | None) -> ServedRelease | None:
        release = await records.release(name, number) if number is not None else None
        version = await records.version(name, release.version) if release is not None else None
        return ServedRelease(release, version) if release is not None and version is not None else None

    warm = [await served(number) for number in serving.warm(spans, routing)]
    return ServingModel(
        name,
        routing.generation,
        await served(routing.champion),
        await served(routing.challenger),
        routing.rollout,
        routing.shadow_percent,
        routing.challenger_percent,
        [item for item in warm if item is not None],
    )
