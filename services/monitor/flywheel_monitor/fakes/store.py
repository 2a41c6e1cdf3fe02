"""`Store` in memory, for unit tests of the use cases; held to the same contract tests as PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from flywheel_common.clock import Clock
from flywheel_common.context import current_principal
from flywheel_common.postgres.errors import InvalidRequestId, RequestIdReused
from flywheel_common.postgres.idempotency import MAX_REQUEST_ID
from flywheel_monitor.alerts.drift_event import DriftAnnouncement
from flywheel_monitor.fakes.alerts import MemoryAlerts
from flywheel_monitor.fakes.archive_queue import MemoryArchiveQueue
from flywheel_monitor.fakes.data import Data
from flywheel_monitor.fakes.evaluation import MemoryReports
from flywheel_monitor.fakes.experiments import MemoryExperiments
from flywheel_monitor.fakes.predictions import MemoryPredictions
from flywheel_monitor.references.ports import ReferenceSource


class MemoryStore:
    """Transactions run one after the other; readers see the newest committed state."""

    def __init__(self, source: ReferenceSource, pane_us: int, clock: Clock) -> None:
        self._data = Data()
        self._source, self._pane_us, self._clock = source, pane_us, clock
        self._lock = asyncio.Lock()

    @property
    def announced(self) -> list[DriftAnnouncement]:
        """The drift that was announced, in order."""
        return list(self._data.announced.values())

    @property
    def deliveries(self) -> dict[tuple[str, str, str], bytes]:
        """(project, sink, event id) → body of what is sent to sinks, in order."""
        return dict(self._data.deliveries)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[MemoryRecords]:
        async with self._lock:
            changed = self._data.copy()
            yield MemoryRecords(changed, self._source, self._pane_us, self._clock)
            vars(self._data).update(vars(changed))  # open readers see the change from here on

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[MemoryRecords]:
        yield MemoryRecords(self._data, self._source, self._pane_us, self._clock)

    async def once(
        self, method: str, request_id: str, body: bytes, effect: Callable[[MemoryRecords], Awaitable[bytes]]
    ) -> bytes:
        if len(request_id) > MAX_REQUEST_ID:
            raise InvalidRequestId(f"request_id is longer than {MAX_REQUEST_ID} characters.")
        async with self.transaction() as records:
            return await records.once((current_principal().subject, method, request_id), body, effect)


class MemoryRecords(MemoryPredictions, MemoryArchiveQueue, MemoryReports, MemoryAlerts, MemoryExperiments):
    """Every port of rows on one copy of the data."""

    def __init__(self, data: Data, source: ReferenceSource, pane_us: int, clock: Clock) -> None:
        self._data, self._source, self._pane_us, self._clock = data, source, pane_us, clock

    async def once(
        self, key: tuple[str, str, str], body: bytes, effect: Callable[[MemoryRecords], Awaitable[bytes]]
    ) -> bytes:
        """`Store.once` inside a transaction."""
        if not key[-1]:
            return await effect(self)
        known = self._data.responses.get(key)
        if known is None:
            self._data.responses[key] = known = body, await effect(self)
        if known[0] != body:
            raise RequestIdReused(
                f"request_id {key[-1]!r} was used for another {key[1]} request: use a new id.",
                request_id=key[-1],
            )
        return known[1]
