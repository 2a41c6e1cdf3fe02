"""One view of a MATERIALIZE job: which files of its table are due, and their rows a batch at a time.

An incremental run reads every file that the view has not seen as it is now. So a row counts however old its
event time is: late data come in new files or in rewritten ones, and a rewritten file is due as a whole. Files
go in the order in which offline reads them (by path, then what was pushed to the view), so that of different
rows with equal times the same one stays. A range run (with a start) reads the rows of its range in every file
and remembers none. Memory is one row group and one batch.

Where it is goes into the job's checkpoint after every batch: file, its stamp, batches done. Another process
goes on there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

import polars as pl

from flywheel_common.clock import Clock
from flywheel_common.errors import FlywheelError, InvalidArgument, NotFound
from flywheel_feature.definitions.model import (
    DataType,
    Entity,
    Feature,
    ParquetSource,
    Source,
    View,
)
from flywheel_feature.definitions.value_rules import Report
from flywheel_feature.encoding.row_checks import EARLIEST, LATEST, MAXIMUM_VALUE_BYTES
from flywheel_feature.ingest.rule_actions import RuleActions
from flywheel_feature.ingest.tombstones import TombstoneFilter
from flywheel_feature.tables.ports import Between, PushedFiles, SeenFiles, TableFile, TableFiles
from flywheel_feature.tables.sources import (
    ROW_CREATED_TIME,
    ROW_EVENT_TIME,
    batch_fields,
    batch_rows,
    declared_rows,
)

BATCH_ROWS = 65_536
CHUNK_ROWS = 2_000


class Running(Protocol):
    """The part of jobs.JobContext that a run needs."""

    def progress(self, done: int, total: int, unit: str = "", message: str = "") -> None: ...

    def check_cancelled(self) -> None: ...

    async def save_checkpoint(self, checkpoint: bytes) -> None: ...


@dataclass(slots=True)
class MaterializeCheckpoint:
    """Where a job is; its checkpoint."""

    finished: list[str] = field(default_factory=list)
    """Views done, by resource name."""
    uri: str = ""
    stamp: str = ""
    batches: int = 0
    """Batches of the file `uri` that are online."""
    read: int = 0
    written: int = 0
    newest: int = 0
    failures: list[str] = field(default_factory=list)
    report: Report = field(default_factory=Report)
    """What rows broke."""

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, data: bytes) -> MaterializeCheckpoint:
        if not data:
            return cls()
        values = json.loads(data)
        return cls(**{**values, "report": Report.load(values["report"])})


class RateLimit:
    """At most so many rows a second on average since the start; 0: no limit."""

    def __init__(self, rows_per_second: int, clock: Clock) -> None:
        self._limit = rows_per_second
        self._clock = clock
        self._begun = clock.monotonic()
        self.rows = 0
        self.chunk = min(CHUNK_ROWS, max(1, rows_per_second // 4)) if rows_per_second else CHUNK_ROWS

    async def wrote(self, rows: int) -> None:
        self.rows += rows
        if self._limit:
            early = self.rows / self._limit - (self._clock.monotonic() - self._begun)
            if early > 0:
                await self._clock.sleep(early)

    def left(self, rows: int) -> str:
        """`, 12 s left`, once that can be said."""
        took = self._clock.monotonic() - self._begun
        if took < 0.5 or not self.rows:
            return ""
        return f", {self.rows / took:,.0f} rows/s, {max(rows, 0) * took / self.rows:.0f} s left"


@dataclass(frozen=True, slots=True)
class Due:
    """What a run reads."""

    view: View
    entity: Entity
    source: Source
    start: int | None
    """Microseconds; None: incremental."""
    end: int | None


class ViewRun:
    def __init__(
        self,
        due: Due,
        files: TableFiles,
        seen: SeenFiles,
        pushed: PushedFiles,
        erased: TombstoneFilter,
        validating: RuleActions,
        write: Callable[[pl.DataFrame], Awaitable[int]],
    ) -> None:
        self._due = due
        self._files = files
        self._seen = seen
        self._pushed = pushed
        self._erased = erased
        self._validating = validating
        self._write = write
        self._keys = [k.name for k in due.entity.join_keys]

    async def run(self, standing: MaterializeCheckpoint, pace: RateLimit, job: Running) -> None:
        """Rows of a file that cannot be read or holds what may not be served are left out;
        `standing.failures` says so."""
        files = await self._pending()
        job.progress(standing.read, 0, "rows", f"looking at {len(files)} files of {self._due.view.id}")
        counts = await asyncio.to_thread(self._files.row_counts, [f.uri for f in files])
        at = next((i for i, f in enumerate(files) if f.uri == standing.uri), 0)
        if self._due.start is None or not files or files[at].uri != standing.uri:
            at = 0
        left = sum(c for c in counts[at:] if isinstance(c, int))
        total = standing.read + left
        for file, count in list(zip(files, counts, strict=True))[at:]:
            if isinstance(count, FlywheelError):
                standing.failures.append(count.message)
                continue
            resumed = standing.uri == file.uri and standing.stamp == file.stamp
            if not resumed:
                standing.uri, standing.stamp, standing.batches = file.uri, file.stamp, 0
            try:
                await self._file(file, standing, total, pace, job)
            except FlywheelError as error:
                if error.retryable:
                    raise
                standing.failures.append(f"{file.uri}: {error.message}")
            await job.save_checkpoint(standing.dump())

    async def _pending(self) -> list[TableFile]:
        due = self._due
        kind = due.source.kind
        assert isinstance(kind, ParquetSource)
        pushed = await self._pushed.pushed(due.view.project, due.view.id)
        try:
            found = await asyncio.to_thread(self._files.files, kind.uri, kind.format)
        except NotFound:
            if not pushed:
                raise
            found = []
        found += pushed
        if due.start is not None:
            return found
        seen = await self._seen.seen(due.view.project, due.view.id, due.view.version)
        return [f for f in found if not f.stamp or seen.get(f.uri) != f.stamp]

    async def _file(
        self, file: TableFile, standing: MaterializeCheckpoint, total: int, pace: RateLimit, job: Running
    ) -> None:
        due, ref = self._due, self._due.view
        names = batch_fields(ref, due.entity, due.source)
        where = Between(due.source.timestamp_field, due.start, due.end) if due.start is not None else None
        batches = self._files.batches(file, names, where, BATCH_ROWS, standing.batches)
        whole = True
        while (found := await asyncio.to_thread(next, batches, None)) is not None:
            number, raw = found
            frame, all_of_it = await asyncio.to_thread(self._prepared, file, names, raw)
            whole = whole and all_of_it
            # Before the latest row is chosen: behind one that is left out the one before it counts.
            frame, standing.report = await self._validating.materialized(ref, frame, standing.report)
            frame = await asyncio.to_thread(self._latest, frame)
            for low in range(0, frame.height, pace.chunk):
                job.check_cancelled()
                chunk = frame[low : low + pace.chunk]
                standing.written += await self._write(chunk)
                await pace.wrote(chunk.height)
                job.progress(
                    standing.read, total, "rows", f"writing {ref.id}{pace.left(total - standing.read)}"
                )
            if frame.height:
                newest = frame.get_column(ROW_EVENT_TIME).dt.epoch("us").max()
                assert isinstance(newest, int)
                standing.newest = max(standing.newest, newest)
            standing.read += raw.height
            standing.batches = number
            await job.save_checkpoint(standing.dump())
            job.progress(standing.read, total, "rows", f"writing {ref.id}{pace.left(total - standing.read)}")
        if due.start is None and whole and file.stamp:
            await self._seen.mark_seen(ref.project, ref.id, ref.version, file.uri, file.stamp)

    def _prepared(
        self, file: TableFile, names: Sequence[str], raw: pl.DataFrame
    ) -> tuple[pl.DataFrame, bool]:
        """The rows of a batch, checked; and whether no row lies beyond the range's end."""
        due = self._due
        if file.pushed:
            # A field that the schema got since is null in what was pushed before.
            raw = raw.with_columns(pl.lit(None).alias(n) for n in names if n not in raw.columns)
        declared = declared_rows(due.source, names, raw)
        time = pl.col(due.source.timestamp_field).dt.epoch("us")
        whole = due.end is None or declared.filter(time >= due.end).height == 0
        if due.start is not None or due.end is not None:
            declared = declared_rows(due.source, names, raw, due.start, due.end)
        frame = batch_rows(declared, due.view, due.entity, due.source)
        _check(frame, due.view.features)
        if not file.pushed:
            known = frame.get_column(ROW_CREATED_TIME).dt.epoch("us").to_numpy()
            kept = self._erased.batch_rows(due.source, known, frame)
            frame = frame if kept is None else frame.filter(pl.Series(kept))
        return frame, whole

    def _latest(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The latest row per entity of a batch."""
        return frame.sort(ROW_EVENT_TIME, ROW_CREATED_TIME, maintain_order=True).unique(
            subset=self._keys, keep="last", maintain_order=True
        )


def _check(frame: pl.DataFrame, features: Sequence[Feature]) -> None:
    """Raises InvalidArgument OUT_OF_RANGE as pushes do: infinity, times outside 1642 … 2100, values over 256
    KiB. NaN is null."""
    for name in (ROW_EVENT_TIME, ROW_CREATED_TIME):
        _check_scalars(name, DataType.TIMESTAMP, frame.get_column(name))
    for feature in features:
        series, kind = frame.get_column(feature.name), feature.data_type
        if kind.is_list or kind.is_vector:
            series = series.explode()
        _check_scalars(feature.name, kind.element, series)


def _check_scalars(name: str, kind: DataType, series: pl.Series) -> None:
    why = ""
    if kind in (DataType.FLOAT32, DataType.FLOAT64):
        if series.is_infinite().any():
            why = "infinity is no value"
    elif kind == DataType.TIMESTAMP:
        times = series.dt.epoch("us")
        low, high = times.min(), times.max()
        if isinstance(low, int) and isinstance(high, int) and (low < EARLIEST or high > LATEST):
            why = "a time must lie between the years 1642 and 2100"
    elif kind in (DataType.STRING, DataType.BYTES):
        sizes = series.str.len_bytes() if kind == DataType.STRING else series.bin.size()
        longest = sizes.max()
        if isinstance(longest, int) and longest > MAXIMUM_VALUE_BYTES:
            why = f"a value is larger than {MAXIMUM_VALUE_BYTES} bytes"
    if why:
        raise InvalidArgument(f"Column {name!r}: {why}.", reason="OUT_OF_RANGE", column=name)
