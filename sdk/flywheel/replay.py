"""History played through the platform again: events, requests and labels in the order of time, each when it became known.

A back-test of everything at once: features, models, monitoring and what they start by themselves see the past as it came.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from flywheel.client import Client
from flywheel.definitions import StreamSource
from flywheel.errors import FlywheelError
from flywheel.tables import to_arrow
from flywheel_common.value import micros
from flywheel_protos.inference.v1 import inference_pb2

PUSHED_ROWS = 5_000
TICK = timedelta(microseconds=1)


@dataclass(frozen=True)
class Events:
    """Rows of a stream source, known from its timestamp on; rows without one never happen. `id`: the column of their event ids."""

    source: StreamSource
    frame: Any
    id: str = ""


@dataclass(frozen=True)
class Requests:
    """A prediction per row, asked at the time in the column `at`. What is to be predicted is in `label`, known from `labelled_at` on; null
    where it never was."""

    frame: Any
    at: str
    id: str
    entity_keys: Iterable[str]
    request_fields: Iterable[str]
    label: str
    labelled_at: str


class Replay:
    """Predictions of `model` are asked from `start` on; what happened before is for `push`."""

    def __init__(
        self,
        client: Client,
        model: str,
        events: Sequence[Events],
        requests: Requests,
        *,
        start: datetime,
        concurrent: int = 64,
    ) -> None:
        self._client, self._model, self._requests = client, model, requests
        self._events = [(e, _Timeline(e.frame, e.source.timestamp)) for e in events]
        self._asked = _Timeline(requests.frame, requests.at).since(start)
        self._labels = _Timeline(self._asked.rows, requests.labelled_at)
        self._start = self._pushed = start
        self._gate = asyncio.Semaphore(concurrent)
        self.answers: list[inference_pb2.PredictResponse] = []
        self.milliseconds: list[float] = []
        """What each prediction took, in the order of their ends."""
        self.failures: list[FlywheelError] = []

    def total(self, until: datetime) -> int:
        """Requests before a time."""
        return len(self._asked.between(self._start, until))

    async def push(self, start: datetime, end: datetime) -> int:
        """Sends the events of [start, end) and the labels that became known; returns how many events, once they show online."""

        async def send(events: Events, rows: pa.Table) -> Iterable[Any]:
            ids = rows[events.id].to_pylist() if events.id else ()
            return (await self._client.push(events.source.name, rows, events.source.schema, ids=ids)).offsets

        news = [(events, timeline.between(start, end)) for events, timeline in self._events]
        parts = [
            (e, rows.slice(at, PUSHED_ROWS)) for e, rows in news for at in range(0, len(rows), PUSHED_ROWS)
        ]
        offsets = await asyncio.gather(*(send(events, rows) for events, rows in parts))
        known, names = self._labels.between(start, end), self._requests
        labels = zip(*(known[c].to_pylist() for c in (names.id, names.label, names.labelled_at)), strict=True)
        await asyncio.gather(
            self._client.wait_applied([o for found in offsets for o in found], within=120.0),
            self._client.record_outcomes(self._model, [label for label in labels if label[1] is not None]),
        )
        return sum(len(rows) for _, rows in parts)

    async def steps(
        self, until: datetime, *, step: timedelta = timedelta(hours=1)
    ) -> AsyncIterator[tuple[datetime, int]]:
        """Plays step after step and yields the end of each, with the number of its requests; these see what was known when it began."""
        begin = self._start
        while begin < until:
            asked = self._asked.between(begin, begin + step)
            if len(asked):
                start, self._pushed = (
                    self._pushed,
                    begin + TICK,
                )  # what became known at that very moment counts
                await self.push(start, self._pushed)
                async with asyncio.TaskGroup() as group:
                    for row in asked.to_pylist():
                        group.create_task(self._predict(row))
            begin += step
            yield begin, len(asked)

    async def _predict(self, row: dict[str, Any]) -> None:
        names = self._requests
        keys, fields = ({n: row[n] for n in wanted} for wanted in (names.entity_keys, names.request_fields))
        async with self._gate:
            began = time.perf_counter()
            try:
                answer = await self._client.predict(
                    self._model, keys, fields, as_of=row[names.at], prediction_id=str(row[names.id])
                )
                self.answers.append(answer)
            except FlywheelError as error:
                self.failures.append(error)
            self.milliseconds.append((time.perf_counter() - began) * 1e3)

    def summary(self) -> list[tuple[str, str]]:
        """What was answered, and how fast."""
        degraded = sum(a.degraded for a in self.answers)
        counted = f"{len(self.answers):,} answered, {degraded:,} by a fallback, {len(self.failures)} failed"
        lookups = [a.timing.features_ms for a in self.answers]
        return [
            ("predictions", counted),
            ("Predict, p50 / p99", _percentiles(self.milliseconds)),
            ("feature lookup, p50 / p99", _percentiles(lookups)),
        ]


class _Timeline:
    """Rows in the order of a column of times; without those that have none."""

    def __init__(self, frame: Any, column: str) -> None:
        rows = to_arrow(frame)
        rows = rows.filter(rows[column].is_valid()).sort_by(column)
        self.rows = rows
        self._times = rows[column].cast(pa.timestamp("us", rows[column].type.tz)).cast(pa.int64()).to_numpy()
        self._column = column

    def between(self, start: datetime, end: datetime) -> pa.Table:
        low, high = np.searchsorted(self._times, [micros(start), micros(end)])
        return self.rows.slice(low, high - low)

    def since(self, start: datetime) -> _Timeline:
        return _Timeline(self.rows.slice(np.searchsorted(self._times, micros(start))), self._column)


def _percentiles(milliseconds: Sequence[float]) -> str:
    if not milliseconds:
        return "–"
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return f"{p50:.1f} / {p99:.1f} ms"
