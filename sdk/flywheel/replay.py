"""Replay of history: events, prediction requests and labels in the order in which they became known.

A back-test of the whole platform: features, models, monitoring and retraining see the past as it happened.
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
from flywheel_common.event_time import unset_time
from flywheel_common.tasks import TaskGroup
from flywheel_common.value import as_utc, micros
from flywheel_protos.inference.v1 import inference_pb2

PUSHED_ROWS = 5_000
TICK = timedelta(microseconds=1)


@dataclass(frozen=True)
class Events:
    """Rows of a stream source, known from their timestamp on; rows without a timestamp are skipped. `id` is
    the column of event ids."""

    source: StreamSource
    frame: Any
    id: str = ""


@dataclass(frozen=True)
class Requests:
    """One prediction request per row, sent at the time in column `at`. The true value is in column `label`,
    known from the time in `labelled_at` on; null = never."""

    frame: Any
    at: str
    id: str
    entity_keys: Iterable[str]
    request_fields: Iterable[str]
    label: str
    labelled_at: str


class Replay:
    """Replays requests from `start` on; earlier events are sent with `push`.

    Naive bounds are UTC. A bound of 1970-01-01 raises EventTimeOutOfRange: it is the value of a time that was
    never set.
    """

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
        start = _bound(start, "start")
        self._client, self._model, self._requests = client, model, requests
        self._events = [(e, _Timeline(e.frame, e.source.timestamp)) for e in events]
        self._due = _Timeline(requests.frame, requests.at).since(start)
        self._labels = _Timeline(self._due.rows, requests.labelled_at)
        self._start = self._pushed = start
        self._gate = asyncio.Semaphore(concurrent)
        self.answers: list[inference_pb2.PredictResponse] = []
        self.milliseconds: list[float] = []
        """Duration of each prediction, in order of completion."""
        self.failures: list[FlywheelError] = []

    def total(self, until: datetime) -> int:
        """The number of requests before `until`."""
        return len(self._due.between(self._start, _bound(until, "until")))

    async def push(self, start: datetime, end: datetime) -> int:
        """Sends the events and labels that became known in [start, end). Returns the number of events when
        they are visible online."""
        start, end = _bound(start, "start"), _bound(end, "end")

        async def send(events: Events, rows: pa.Table) -> Iterable[Any]:
            ids = rows[events.id].to_pylist() if events.id else ()
            return (await self._client.push(events.source.name, rows, events.source.schema, ids=ids)).offsets

        known = [(events, timeline.between(start, end)) for events, timeline in self._events]
        parts = [
            (e, rows.slice(at, PUSHED_ROWS)) for e, rows in known for at in range(0, len(rows), PUSHED_ROWS)
        ]
        offsets = await asyncio.gather(*(send(events, rows) for events, rows in parts))
        labelled, names = self._labels.between(start, end), self._requests
        columns = (labelled[c].to_pylist() for c in (names.id, names.label, names.labelled_at))
        labels = zip(*columns, strict=True)
        await asyncio.gather(
            self._client.wait_applied([o for found in offsets for o in found], within=120.0),
            self._client.record_outcomes(self._model, [label for label in labels if label[1] is not None]),
        )
        return sum(len(rows) for _, rows in parts)

    async def steps(
        self, until: datetime, *, step: timedelta = timedelta(hours=1)
    ) -> AsyncIterator[tuple[datetime, int]]:
        """Replays in steps; yields the end and the number of requests of each step. Requests see what was
        known when their step began."""
        until = _bound(until, "until")
        begin = self._start
        while begin < until:
            due = self._due.between(begin, begin + step)
            if len(due):
                # What became known exactly at `begin` counts.
                start, self._pushed = self._pushed, begin + TICK
                await self.push(start, self._pushed)
                async with TaskGroup() as group:
                    for row in due.to_pylist():
                        group.create_task(self._predict(row))
            begin += step
            yield begin, len(due)

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
        """Counts and latencies of the predictions, as rows of a table."""
        degraded = sum(a.degraded for a in self.answers)
        counted = f"{len(self.answers):,} answered, {degraded:,} by a fallback, {len(self.failures)} failed"
        lookups = [a.timing.features_ms for a in self.answers]
        return [
            ("predictions", counted),
            ("Predict, p50 / p99", _percentiles(self.milliseconds)),
            ("feature lookup, p50 / p99", _percentiles(lookups)),
        ]


def _bound(moment: datetime, name: str) -> datetime:
    if micros(moment) == 0:
        raise unset_time(name)
    return as_utc(moment)


class _Timeline:
    """Rows sorted by a column of times; rows without a time are left out."""

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
