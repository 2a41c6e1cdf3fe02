"""`ports.Gateways`, `watching.Notices` and `ports.Monitor` in memory. Held to the same contract suites as the real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from flywheel_common.clock import Clock
from flywheel_registry.memory import MemoryStore
from flywheel_registry.resources import Gateway, ObservedModel, Rollout
from flywheel_registry.rollout import Comparison

_NEVER = datetime.fromtimestamp(0, UTC)
_LIVE = timedelta(seconds=1)


class MemoryGateways:
    """`ports.Gateways` of one replica. Replicas that share `held` see each other's gateways."""

    def __init__(self, clock: Clock, held: dict[str, Gateway] | None = None) -> None:
        self._clock = clock
        self._held = {} if held is None else held
        self._wake: set[Callable[[], None]] = set()

    async def heartbeat(self, gateway: str, observed: Sequence[ObservedModel]) -> None:
        self._held[gateway] = replace(
            self._of(gateway), last_heartbeat=self._clock.now(), observed=tuple(observed)
        )
        for wake in tuple(self._wake):
            wake()

    async def watching(self, gateway: str, project: str) -> None:
        self._held[gateway] = replace(self._of(gateway), project=project)

    async def seen(self, within_seconds: float, after: str = "", limit: int = 1000) -> list[Gateway]:
        now = self._clock.now()
        recent = [
            replace(found, live=found.last_heartbeat >= now - _LIVE)
            for name, found in sorted(self._held.items())
            if name > after and found.last_heartbeat >= now - timedelta(seconds=within_seconds)
        ]
        return recent[:limit]

    def on_heartbeat(self, wake: Callable[[], None]) -> Callable[[], None]:
        self._wake.add(wake)
        return lambda: self._wake.discard(wake)

    def _of(self, gateway: str) -> Gateway:
        return self._held.get(gateway, Gateway(gateway, _NEVER, live=False, observed=()))


class MemoryNotices:
    """`watching.Notices` of a `MemoryStore`."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._waiting: set[str] = set()
        self._woken = asyncio.Event()
        self._listening = False

    async def next(self, timeout_seconds: float) -> set[str] | None:
        if not self._listening:
            self._listening = True
            self._store.on_routed.append(self._heard)
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._woken.wait()
        self._woken.clear()
        found, self._waiting = self._waiting, set()
        return found

    async def generations(self) -> dict[str, int]:
        return self._store.generations()

    def _heard(self, models: set[str]) -> None:
        self._waiting |= models
        self._woken.set()


class MemoryMonitor:
    """`ports.Monitor` that answers what it was given, by rollout; None for all others."""

    def __init__(self) -> None:
        self.answers: dict[str, Comparison] = {}

    async def compare(self, rollout: Rollout) -> Comparison | None:
        return self.answers.get(rollout.name)
