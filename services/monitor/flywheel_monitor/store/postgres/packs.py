"""Packs of predictions: the rows of a pack as binary columns, and back.

A row of the table `prediction_pack` has rows of one variant and partition that arrived in one transaction and
lie in one slice of event time: a minute, or less where panes are not whole minutes, so that no pack lies in
two panes. Numbers are big-endian, so that SQL can write them too; texts are joined by NUL, which no text
contains, or empty where all of them are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from math import gcd
from typing import Any

import numpy as np

from flywheel_common.arrays import Array, Floats, Ints, Mask
from flywheel_common.signature import OutputKind
from flywheel_monitor.ingest.answers import Answer
from flywheel_monitor.ingest.batches import PredictionColumns
from flywheel_monitor.windows.span import Span
from flywheel_monitor.windows.support import SUPPORT

PACK_ROWS = 512
"""Most rows of a pack: what is read for one of them."""
COLUMNS = (
    "rows",
    "first_us",
    "last_us",
    "newest_us",
    "buckets",
    "ids",
    "event_times",
    "scores",
    "flags",
    "latencies_ms",
    "costs",
    "segments",
    "subjects",
    "outputs",
)
"""What `packs_of` returns of each pack."""
_SEPARATOR = "\0"
_DECISION, _FAILED, _SOURCE = 1, 2, 4
_MINUTE_US = 60_000_000


def slice_us(pane_us: int) -> int:
    """Width of the slices of event time that packs lie in."""
    return gcd(pane_us, _MINUTE_US)


def packs_of(batch: PredictionColumns, new: Mask, buckets: Ints, width_us: int) -> Iterator[tuple[Any, ...]]:
    """The COLUMNS of the packs of the rows that `new` selects, in slices of this width. `buckets` [n] are
    those of the ids."""
    rows = np.flatnonzero(new)
    times = batch.event_times[rows]
    if (np.diff(times) < 0).any():
        order = np.argsort(times, kind="stable")
        rows, times = rows[order], times[order]
    flags = (batch.decisions | batch.failed * _FAILED | batch.sources * _SOURCE).astype("u1")
    texts = [batch.ids, *(t if any(t) else () for t in (batch.segments, batch.subjects))]
    slices = np.flatnonzero(np.diff(times // width_us)) + 1
    for start, end in pairwise([0, *slices.tolist(), len(rows)]):
        for at in range(start, end, PACK_ROWS):
            yield _pack(batch, texts, buckets, flags, rows[at : min(at + PACK_ROWS, end)])


def _pack(
    batch: PredictionColumns, texts: Sequence[Sequence[str]], buckets: Ints, flags: Array, rows: Ints
) -> tuple[Any, ...]:
    """The pack of these rows, which are in order of time."""
    first, end = int(rows[0]), int(rows[-1]) + 1
    consecutive = end - first == len(rows) and bool((np.diff(rows) == 1).all())
    at: Any = slice(first, end) if consecutive else rows
    ids, segments, subjects = (_joined(t, at) for t in texts)
    times, costs = batch.event_times[at], batch.costs[at]
    outputs = batch.output.kind is OutputKind.MULTICLASS
    return (
        len(rows),
        int(times[0]),
        int(times[-1]),
        times[-SUPPORT:][::-1].tolist(),
        np.unique(buckets[at]).tolist(),
        ids,
        times.astype(">i8").tobytes(),
        batch.scores[at].astype(">f8").tobytes(),
        flags[at].tobytes(),
        batch.latencies_ms[at].astype(">f4").tobytes(),
        b"" if np.isnan(costs).all() else costs.astype(">f4").tobytes(),
        segments,
        subjects,
        batch.outputs[at].astype(">f8").tobytes() if outputs else b"",
    )


def _joined(texts: Sequence[str], at: Any) -> bytes:
    if not texts:
        return b""
    taken = texts[at] if isinstance(at, slice) else [texts[i] for i in at.tolist()]
    return _SEPARATOR.join(taken).encode() if any(taken) else b""


@dataclass(frozen=True)
class StoredPrediction:
    """One stored prediction; the cost is NaN where none was measured."""

    id: str
    variant_id: int
    shadow: bool
    answer: Answer
    subject: str
    latency_ms: float
    cost: float
    failed: bool
    arrived_at: datetime


class Pack:
    """n stored predictions. The columns that a statement has left out must not be used."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.row = row

    @cached_property
    def ids(self) -> list[str]:
        found: list[str] = self.row["ids"].decode().split(_SEPARATOR)
        return found

    @cached_property
    def event_times(self) -> Ints:
        return np.frombuffer(self.row["event_times"], ">i8").astype(np.int64)

    @cached_property
    def scores(self) -> Floats:
        return np.frombuffer(self.row["scores"], ">f8").astype(np.float64)

    @cached_property
    def sources(self) -> Ints:
        return self._flags // _SOURCE

    @cached_property
    def decisions(self) -> Mask:
        return (self._flags & _DECISION) != 0

    @cached_property
    def failed(self) -> Mask:
        return (self._flags & _FAILED) != 0

    @cached_property
    def latencies_ms(self) -> Floats:
        return np.frombuffer(self.row["latencies_ms"], ">f4").astype(np.float64)

    @cached_property
    def costs(self) -> Floats:
        """[n], NaN where none was measured."""
        found = np.frombuffer(self.row["costs"], ">f4").astype(np.float64)
        return found if len(found) else np.full(len(self.event_times), np.nan)

    @cached_property
    def segments(self) -> list[str]:
        return self._texts("segments")

    @cached_property
    def subjects(self) -> list[str]:
        return self._texts("subjects")

    @cached_property
    def outputs(self) -> Floats | None:
        """[n, width] values of the answers, for the kind whose score does not contain them."""
        found = np.frombuffer(self.row["outputs"], ">f8").astype(np.float64)
        return found.reshape(len(self.event_times), -1) if len(found) else None

    @cached_property
    def _flags(self) -> Ints:
        return np.frombuffer(self.row["flags"], np.uint8).astype(np.int64)

    def _texts(self, name: str) -> list[str]:
        joined = self.row[name]
        return joined.decode().split(_SEPARATOR) if joined else [""] * len(self.event_times)

    def rows_in(self, span: Span) -> list[int]:
        """The rows with event times in the span."""
        times = self.event_times
        found: list[int] = np.flatnonzero((times >= span.start_us) & (times < span.end_us)).tolist()
        return found

    def prediction(self, i: int) -> StoredPrediction:
        """Row i, which keeps nothing of the pack in memory."""
        return StoredPrediction(
            id=self.ids[i],
            variant_id=self.row["variant_id"],
            shadow=self.row["shadow"],
            answer=Answer(
                int(self.event_times[i]),
                self.segments[i],
                float(self.scores[i]),
                int(self.sources[i]),
                bool(self.decisions[i]),
                None if self.outputs is None else self.outputs[i].copy(),
            ),
            subject=self.subjects[i],
            latency_ms=float(self.latencies_ms[i]),
            cost=float(self.costs[i]),
            failed=bool(self.failed[i]),
            arrived_at=self.row["arrived_at"],
        )
