"""`ArchiveQueue` in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flywheel_common.clock import Clock
from flywheel_monitor.archive.queue import Segment, Waiting
from flywheel_monitor.fakes.data import Data


class MemoryArchiveQueue:
    _data: Data
    _clock: Clock

    async def waiting(self) -> list[Waiting]:
        now, found = self._clock.now(), list[Waiting]()
        for model, (number, _) in self._data.models.items():
            mine = [q for q in self._data.queue.values() if q.model_id == number and q.segment is None]
            if mine:
                ages = [(now - q.since).total_seconds() for q in mine]
                found.append(Waiting(model, sum(q.rows for q in mine), min(ages), max(ages)))
        return found

    async def cut_segment(self, model: str, at_least: int) -> None:
        number, rows = self._data.models[model][0], 0
        segment = Segment(len(self._data.segments) + 1, model)
        for at, queued in list(self._data.queue.items()):
            if queued.model_id == number and queued.segment is None and rows < at_least:
                self._data.queue[at] = replace(queued, segment=segment.id)
                self._data.segments[segment.id] = segment, None
                rows += queued.rows

    async def pending_segments(self) -> list[Segment]:
        return [segment for segment, done in self._data.segments.values() if done is None]

    async def segment_batches(self, segment: int) -> list[tuple[bytes, bytes]]:
        return [(q.payload, q.kept) for q in self._data.queue.values() if q.segment == segment]

    async def complete_segment(
        self, segment: int, objects: Sequence[str], rows: int, last_event_us: int
    ) -> None:
        self._data.segments[segment] = self._data.segments[segment][0], (rows, last_event_us)
        for at in [at for at, q in self._data.queue.items() if q.segment == segment]:
            del self._data.queue[at]

    async def archived(self, model: str) -> tuple[int, int | None]:
        found = [done for segment, done in self._data.segments.values() if segment.model == model and done]
        return sum(rows for rows, _ in found), max((last for _, last in found), default=None)
