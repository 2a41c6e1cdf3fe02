"""Reads sources: Parquet and Delta tables on S3, and streams from the archive of their events."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import polars as pl

from flywheel_common.clock import Clock
from flywheel_common.errors import NotFound, WrongType
from flywheel_feature.definitions.errors import UnknownField, WrongSpine
from flywheel_feature.definitions.frame_types import converted, polars_type
from flywheel_feature.definitions.model import BatchView, Entity, ParquetSource, Source, TableFormat, View
from flywheel_feature.jobs.progress import JobProgress
from flywheel_feature.tables.declared import (
    check_columns,
    columns_of,
    declared_rows,
    fields_of,
    in_range,
    mismatch,
    times_between,
)
from flywheel_feature.tables.errors import ArchiveBehind
from flywheel_feature.tables.ports import Archive, Piece, Segment, Tables, TableSnapshot

EVENT_ID, PARTITION, OFFSET = "__event_id", "__partition", "__offset"
"""Columns that the archive adds to a source's schema."""
STREAM_COLUMNS = (EVENT_ID, PARTITION, OFFSET)
ARRIVED = "__arrived"
"""Another one: when Kafka stored the event, microseconds. It is read for sources with an allowed lateness."""

ROW_EVENT_TIME, ROW_CREATED_TIME = "__event_time", "__created_time"
"""Columns with the times of the rows that `read_batch_rows` returns."""

POLL_SECONDS = 0.2
READERS = 8
"""Files read at the same time."""


class SourceReader:
    """Reads the columns of sources, typed as declared; files are read in threads.

    `pins`: the snapshots that a pinned reader has read (see `pinned`); None for a reader that is not pinned.
    """

    def __init__(
        self, tables: Tables, archive: Archive, pins: dict[str, TableSnapshot] | None = None
    ) -> None:
        self._tables = tables
        self._archive = archive
        self._pins = pins

    async def read(
        self,
        source: Source,
        fields: Sequence[str],
        *,
        low: int | None = None,
        high: int | None = None,
        positions: bool = False,
        pushed_to: View | None = None,
        keys: Collection[str] = (),
    ) -> pl.DataFrame:
        """`fields` of the rows with low <= event time < high (microseconds), typed as declared, in fixed
        order.

        The events of a stream are unique and ordered by (partition, offset), with the additional column
        `EVENT_ID` (and with `positions` also `PARTITION` and `OFFSET`). The rows of a Parquet source are
        followed by the rows pushed to the batch view `pushed_to`, in the order in which they were pushed.
        `keys` are fields that each file must have. Raises FailedPrecondition SOURCE_MISMATCH when the files
        do not match the schema.
        """
        names = list(dict.fromkeys([*fields, source.timestamp_field]))
        unknown = [n for n in names if source.field(n) is None]
        if unknown:
            known = ", ".join(f.name for f in source.schema)
            raise UnknownField(
                f"Source {source.id!r} has no field {unknown[0]!r}; it has: {known}.", field=unknown[0]
            )
        if source.is_stream:
            return await self._read_stream(source, names, low, high, positions)
        if not isinstance(source.kind, ParquetSource):
            raise WrongSpine(f"Source {source.id!r} is a request source: it has no history to read.")
        uris: Sequence[str] = ()
        if pushed_to is not None:
            uris = await self._archive.pushed_uris(pushed_to.project, pushed_to.id)
        try:
            rows = await asyncio.to_thread(self._read_table, source, source.kind, names, low, high, keys)
        except NotFound:
            if not uris:
                raise
            # All rows of the view were pushed; its source has no files.
            rows = empty_rows(source, names)
        return await asyncio.to_thread(self._with_pushed, source, names, rows, uris, low, high)

    async def read_batch_rows(
        self, view: View, entity: Entity, source: Source, start: int | None, end: int | None
    ) -> pl.DataFrame:
        """The rows of a batch view with start <= event time < end, for materialization.

        Columns: join keys, features by name, `ROW_EVENT_TIME`, `ROW_CREATED_TIME` (the event time if the
        source has no created field). Of rows with equal times, the last one counts. Null keys and null event
        times are left out.
        """
        fields = batch_fields(view, entity, source)
        keys = [k.name for k in entity.join_keys]
        frame = await self.read(source, fields, low=start, high=end, pushed_to=view, keys=keys)
        return batch_rows(frame, view, entity, source)

    async def _read_stream(
        self, source: Source, names: list[str], low: int | None, high: int | None, positions: bool
    ) -> pl.DataFrame:
        segments = [
            s for s in await self._archive.segments(source.project, source.id) if _overlaps(s, low, high)
        ]
        return await asyncio.to_thread(self._read_segments, source, names, segments, low, high, positions)

    def _with_pushed(
        self,
        source: Source,
        names: list[str],
        rows: pl.DataFrame,
        uris: Sequence[str],
        low: int | None,
        high: int | None,
    ) -> pl.DataFrame:
        if not uris:
            return rows
        pushed = declared_rows(source, names, self._tables.read_files(uris, names))
        return pl.concat([rows, in_range(pushed, source.timestamp_field, low, high)])

    def _read_segments(
        self,
        source: Source,
        names: list[str],
        segments: Sequence[Segment],
        low: int | None,
        high: int | None,
        positions: bool,
    ) -> pl.DataFrame:
        uris = [s.uri for s in _in_order(segments)]
        if not uris:
            return events_in_order(empty_rows(source, names), positions=positions)
        arrived = _arrived_column(source)
        frame = self._tables.read_files(uris, [*names, *STREAM_COLUMNS, *arrived])
        frame = frame.cast(dict.fromkeys(arrived, pl.Int64))
        extra = (*(STREAM_COLUMNS if positions else (EVENT_ID,)), *arrived)
        events = declared_rows(source, names, events_in_order(frame, positions=positions), extra=extra)
        return in_range(events, source.timestamp_field, low, high)

    def _read_table(
        self,
        source: Source,
        kind: ParquetSource,
        names: list[str],
        low: int | None,
        high: int | None,
        keys: Collection[str],
    ) -> pl.DataFrame:
        files = self._snapshot(source, kind, names).files
        if len(files) == 1:
            return self.read_pieces(source, names, files, low, high, keys=keys)
        with ThreadPoolExecutor(READERS) as readers:
            parts = readers.map(
                lambda file: self.read_pieces(source, names, [file], low, high, keys=keys), files
            )
            return pl.concat([empty_rows(source, names), *parts])

    def pinned(self) -> SourceReader:
        """A reader for one job, which reads a table at the same version each time."""
        return SourceReader(self._tables, self._archive, {})

    async def pinned_at(self, sources: Iterable[Source], versions: Mapping[str, int]) -> SourceReader:
        """A pinned reader that has taken the snapshots of the Delta tables among `sources`.

        A table is read in its version of `versions` (see the property of that name), else in its newest one.
        A job that is resumed therefore reads the same rows again. Raises what `Tables.snapshot` raises.
        """
        pins: dict[str, TableSnapshot] = {}
        for source in sources:
            if isinstance(source.kind, ParquetSource) and source.kind.format == TableFormat.DELTA:
                version = versions.get(source.name, -1)
                pins[source.name] = await asyncio.to_thread(
                    self._tables.snapshot, source.kind.uri, source.kind.format, version
                )
        return SourceReader(self._tables, self._archive, pins)

    async def pieces(
        self,
        source: Source,
        fields: Sequence[str],
        most_rows: int,
        *,
        low: int | None = None,
        high: int | None = None,
        pushed_to: View | None = None,
    ) -> list[Piece]:
        """The pieces that `read` would read, in order, for `read_pieces`. Checks the files as `read` does."""
        names = list(dict.fromkeys([*fields, source.timestamp_field]))
        if source.is_stream:
            segments = await self._archive.segments(source.project, source.id)
            return [Piece(s.uri, s.event_count) for s in _in_order(segments) if _overlaps(s, low, high)]
        assert isinstance(source.kind, ParquetSource)
        uris: Sequence[str] = ()
        if pushed_to is not None:
            uris = await self._archive.pushed_uris(pushed_to.project, pushed_to.id)
        try:
            files = (await asyncio.to_thread(self._snapshot, source, source.kind, names)).files
        except NotFound:
            if not uris:
                raise
            files = ()
        pushed = [Piece(uri, pushed=True) for uri in uris]
        return await asyncio.to_thread(self._tables.pieces, [*files, *pushed], most_rows)

    def read_pieces(
        self,
        source: Source,
        fields: Sequence[str],
        pieces: Sequence[Piece],
        low: int | None = None,
        high: int | None = None,
        keys: Collection[str] = (),
    ) -> pl.DataFrame:
        """The rows of pieces, in order; those of streams keep `PARTITION` and `OFFSET`."""
        names = list(dict.fromkeys([*fields, source.timestamp_field]))
        arrived = _arrived_column(source)
        extra = (*STREAM_COLUMNS, *arrived) if source.is_stream else ()
        parts = [empty_rows(source, names)]
        for piece in pieces:
            try:
                # Not all files are filtered while reading; `in_range` filters all.
                where = times_between(source, piece, low, high)
                frame = self._tables.read_piece(piece, [*columns_of(source, names, piece), *extra], where)
            except WrongType as error:
                raise mismatch(source, f"{piece.uri}: {error.message}") from error
            if source.is_stream:
                # Segments that an older version wrote lack the time of arrival.
                missing = (pl.lit(None, pl.Int64).alias(n) for n in arrived if n not in frame.columns)
                frame = frame.with_columns(missing).cast(
                    {PARTITION: pl.Int32, **dict.fromkeys([OFFSET, *arrived], pl.Int64)}
                )
            rows = declared_rows(source, names, frame, piece, keys=keys, extra=extra)
            parts.append(in_range(rows, source.timestamp_field, low, high))
        return pl.concat(parts)

    def _snapshot(self, source: Source, kind: ParquetSource, names: Sequence[str]) -> TableSnapshot:
        snapshot = self._pins.get(source.name) if self._pins is not None else None
        if snapshot is None:
            snapshot = self._tables.snapshot(kind.uri, kind.format)
            if self._pins is not None:
                self._pins[source.name] = snapshot
        folders = {name for file in snapshot.files for name, _ in file.partition}
        others = [file.uri for file in snapshot.files[1:]]
        check_columns(source, names, {*snapshot.stored, *folders}, self._tables, others)
        return snapshot

    @property
    def versions(self) -> dict[str, int]:
        """Resource name of a source → the version of its Delta table that this pinned reader reads."""
        return {name: s.version for name, s in (self._pins or {}).items() if s.version >= 0}


def empty_rows(source: Source, names: Sequence[str]) -> pl.DataFrame:
    """No rows, with the columns of `SourceReader.read_pieces`."""
    columns = {n: polars_type(f.data_type, f.vector_size) for n, f in fields_of(source, names)}
    extra: dict[str, pl.DataType] = {}
    if source.is_stream:
        extra = {EVENT_ID: pl.String(), PARTITION: pl.Int32(), OFFSET: pl.Int64()}
        extra |= {name: pl.Int64() for name in _arrived_column(source)}
    return pl.DataFrame(schema={**columns, **extra})


def _arrived_column(source: Source) -> tuple[str, ...]:
    return (ARRIVED,) if source.allowed_lateness else ()


def events_in_order(frame: pl.DataFrame, *, positions: bool = False) -> pl.DataFrame:
    """Events by (partition, offset), without duplicate event ids; `positions` keeps the two columns."""
    events = frame.sort(PARTITION, OFFSET, maintain_order=True).unique(
        subset=[EVENT_ID], keep="first", maintain_order=True
    )
    return events if positions else events.drop(PARTITION, OFFSET)


def _in_order(segments: Iterable[Segment]) -> list[Segment]:
    return sorted(segments, key=lambda s: (s.partition, s.first_offset))


def batch_fields(view: View, entity: Entity, source: Source) -> list[str]:
    """The fields of a source that a batch view needs."""
    assert isinstance(view.kind, BatchView)
    names = [k.name for k in entity.join_keys] + [f.field or f.name for f in view.kind.features]
    return list(
        dict.fromkeys([*names, source.created_field or source.timestamp_field, source.timestamp_field])
    )


def batch_rows(frame: pl.DataFrame, view: View, entity: Entity, source: Source) -> pl.DataFrame:
    """Rows of a source, typed as declared → rows of a batch view (see `SourceReader.read_batch_rows`)."""
    assert isinstance(view.kind, BatchView)
    keys = [k.name for k in entity.join_keys]
    frame = frame.filter(pl.all_horizontal(pl.col(k).is_not_null() for k in keys))
    features = []
    for f in view.kind.features:
        stored = f.field or f.name
        features.append(converted(frame, stored, f.data_type, f.vector_size).alias(f.name))
    time, created = source.timestamp_field, source.created_field or source.timestamp_field
    return frame.select(
        *keys,
        *features,
        pl.col(time).alias(ROW_EVENT_TIME),
        pl.coalesce(created, time).alias(ROW_CREATED_TIME),
    )


async def wait_until_archived(
    archive: Archive, clock: Clock, sources: Iterable[Source], *, timeout_seconds: float, job: JobProgress
) -> None:
    """Wait until the archive has all events that the streams have now, so that no earlier push is missed.

    Raises FailedPrecondition ARCHIVE_BEHIND after `timeout_seconds`.
    """
    streams = [s for s in sources if s.is_stream]
    targets = {s.name: dict(await archive.end_offsets(s.project, s.id)) for s in streams}
    deadline = clock.monotonic() + timeout_seconds
    for source in streams:
        while True:
            job.check_cancelled()
            missing = _missing(
                targets[source.name], await archive.archived_offsets(source.project, source.id)
            )
            if not missing:
                break
            if clock.monotonic() >= deadline:
                raise ArchiveBehind(
                    f"The archive of {source.name} is {missing} events behind its topic after "
                    f"{timeout_seconds:g} s: check that `flywheel-feature materialize` runs, and retry.",
                    source=source.name,
                    missing_events=missing,
                )
            job.progress(0, 0, "rows", f"waiting for {missing} events of {source.id} to be archived")
            await clock.sleep(POLL_SECONDS)


def _missing(target: Mapping[int, int], archived: Mapping[int, int]) -> int:
    return sum(max(end - archived.get(partition, 0), 0) for partition, end in target.items())


def _overlaps(segment: Segment, low: int | None, high: int | None) -> bool:
    return (low is None or segment.max_time >= low) and (high is None or segment.min_time < high)
