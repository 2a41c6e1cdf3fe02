"""Reading sources: Parquet tables as they lie on S3, and streams from the archive of their events."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import polars as pl

from flywheel_common.clock import Clock
from flywheel_common.errors import FailedPrecondition, InvalidArgument, NotFound
from flywheel_feature.definitions.frame_types import fits, from_text, polars_type, to_type
from flywheel_feature.definitions.model import (
    BatchView,
    DataType,
    Entity,
    Field,
    ParquetSource,
    Source,
    TableFormat,
    View,
)
from flywheel_feature.jobs.progress import JobProgress
from flywheel_feature.tables.ports import Archive, Between, Piece, Segment, Tables, TableSnapshot

EVENT_ID, PARTITION, OFFSET = "__event_id", "__partition", "__offset"
"""Columns that the archive adds to a source's schema."""
STREAM_COLUMNS = (EVENT_ID, PARTITION, OFFSET)

ROW_EVENT_TIME, ROW_CREATED_TIME = "__event_time", "__created_time"
"""Times of the rows that `read_batch_rows` answers."""

POLL_SECONDS = 0.2
READERS = 8
"""Files read at once."""


class SourceReader:
    """Reads columns of sources as declared. Work on files happens in threads, so the event loop goes on."""

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
    ) -> pl.DataFrame:
        """`fields` of every row with low <= event time < high (microseconds), typed as declared, in a fixed order.

        A stream's events come once each, by (partition, offset), with `EVENT_ID` as one more column (and, with `positions`,
        `PARTITION` and `OFFSET`). After the rows of a Parquet source come those pushed to the batch view `pushed_to`, in the
        order in which they were pushed.
        Raises FailedPrecondition SOURCE_MISMATCH when the files do not hold what the schema says.
        """
        names = list(dict.fromkeys([*fields, source.timestamp_field]))
        unknown = [n for n in names if source.field(n) is None]
        if unknown:
            raise InvalidArgument(
                f"Source {source.id!r} has no field {unknown[0]!r}; it has: {', '.join(f.name for f in source.schema)}.",
                reason="UNKNOWN_FIELD",
                field=unknown[0],
            )
        if source.is_stream:
            return await self._read_stream(source, names, low, high, positions)
        if not isinstance(source.kind, ParquetSource):
            raise InvalidArgument(
                f"Source {source.id!r} comes with requests and has no history to read.", reason="WRONG_SPINE"
            )
        uris: Sequence[str] = ()
        if pushed_to is not None:
            uris = await self._archive.pushed_uris(pushed_to.project, pushed_to.id)
        try:
            rows = await asyncio.to_thread(self._read_table, source, source.kind, names, low, high)
        except NotFound:
            if not uris:
                raise
            # Everything that the view has was pushed.
            rows = empty_rows(source, names)
        return await asyncio.to_thread(self._with_pushed, source, names, rows, uris, low, high)

    async def read_batch_rows(
        self, view: View, entity: Entity, source: Source, start: int | None, end: int | None
    ) -> pl.DataFrame:
        """Rows of a batch view with start <= event time < end, for materialization.

        Columns: join keys, features by name, `ROW_EVENT_TIME`, `ROW_CREATED_TIME` (the event time where the source has none).
        Rows are in the order in which a later one of equal times wins; null keys and null event times are left out.
        """
        frame = await self.read(
            source, batch_fields(view, entity, source), low=start, high=end, pushed_to=view
        )
        return batch_rows(frame, view, entity, source)

    async def _read_stream(
        self, source: Source, names: list[str], low: int | None, high: int | None, positions: bool
    ) -> pl.DataFrame:
        segments = [
            s for s in await self._archive.segments(source.project, source.id) if _overlaps(s, low, high)
        ]
        return await asyncio.to_thread(self._read_segments, source, names, segments, low, high, positions)

    def _with_pushed(
        self, source: Source, names: list[str], rows: pl.DataFrame, uris: Sequence[str], low: int | None, high: int | None
    ) -> pl.DataFrame:  # fmt: skip
        if not uris:
            return rows
        pushed = _as_declared(source, names, self._tables.read_files(uris, names))
        return pl.concat([rows, _in_range(pushed, source.timestamp_field, low, high)])

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
        frame = self._tables.read_files(uris, [*names, EVENT_ID, PARTITION, OFFSET])
        return _in_range(
            _as_declared(
                source,
                names,
                events_in_order(frame, positions=positions),
                extra=STREAM_COLUMNS if positions else [EVENT_ID],
            ),
            source.timestamp_field,
            low,
            high,
        )

    def _read_table(
        self, source: Source, kind: ParquetSource, names: list[str], low: int | None, high: int | None
    ) -> pl.DataFrame:
        files = self._snapshot(source, kind, names).files
        if len(files) == 1:
            return self.read_pieces(source, names, files, low, high)
        with ThreadPoolExecutor(READERS) as readers:
            parts = readers.map(lambda file: self.read_pieces(source, names, [file], low, high), files)
            return pl.concat([empty_rows(source, names), *parts])

    def pinned(self) -> SourceReader:
        """A reader for one job: a table that is read twice is read at one version."""
        return SourceReader(self._tables, self._archive, {})

    async def pinned_at(self, sources: Iterable[Source], versions: Mapping[str, int]) -> SourceReader:
        """A pinned reader that holds the Delta tables among `sources` now: at `versions` (see the property) where one is given
        there, else as they are. So a job that starts again reads what it read before.

        Raises what Tables.snapshot raises.
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
        self, source: Source, fields: Sequence[str], most_rows: int, *, low: int | None = None, high: int | None = None,
        pushed_to: View | None = None,
    ) -> list[Piece]:  # fmt: skip
        """What `read` would read, in order, to be read piece by piece with `read_pieces`. Checks what `read` checks of the files."""
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
        return await asyncio.to_thread(self._tables.pieces, [*files, *map(Piece, uris)], most_rows)

    def read_pieces(
        self, source: Source, fields: Sequence[str], pieces: Sequence[Piece], low: int | None = None, high: int | None = None
    ) -> pl.DataFrame:  # fmt: skip
        """Rows of pieces, in order. A stream's events still have their `PARTITION` and `OFFSET`: see `events_in_order`."""
        names = list(dict.fromkeys([*fields, source.timestamp_field]))
        extra = STREAM_COLUMNS if source.is_stream else ()
        # Timestamps are compared where they are read; numbers that stand for times are not.
        where = None if low is None and high is None else Between(source.timestamp_field, low, high)
        parts = [empty_rows(source, names)]
        for piece in pieces:
            frame = self._tables.read_piece(piece, [*names, *extra], where)
            if source.is_stream:
                frame = frame.cast({PARTITION: pl.Int32, OFFSET: pl.Int64})
            text = [(n, f) for n, f in _fields(source, names) if n in dict(piece.partition)]
            parts.append(
                _in_range(_as_declared(source, names, frame, extra, text), source.timestamp_field, low, high)
            )
        return pl.concat(parts)

    def _snapshot(self, source: Source, kind: ParquetSource, names: Sequence[str]) -> TableSnapshot:
        snapshot = self._pins.get(source.name) if self._pins is not None else None
        if snapshot is None:
            snapshot = self._tables.snapshot(kind.uri, kind.format)
            if self._pins is not None:
                self._pins[source.name] = snapshot
        text = {name for file in snapshot.files[:1] for name, _ in file.partition}
        _check_stored(source, [n for n in names if n not in text], snapshot.stored)
        return snapshot

    @property
    def versions(self) -> dict[str, int]:
        """Resource name of a source → the version of the Delta table that a pinned reader read."""
        return {name: s.version for name, s in (self._pins or {}).items() if s.version >= 0}


def empty_rows(source: Source, names: Sequence[str]) -> pl.DataFrame:
    columns = {n: polars_type(f.data_type, f.vector_size) for n, f in _fields(source, names)}
    extra = {EVENT_ID: pl.String(), PARTITION: pl.Int32(), OFFSET: pl.Int64()} if source.is_stream else {}
    return pl.DataFrame(schema={**columns, **extra})


def events_in_order(frame: pl.DataFrame, *, positions: bool = False) -> pl.DataFrame:
    """Events by (partition, offset), each event id once; the two columns are gone, or kept with `positions`."""
    events = frame.sort(PARTITION, OFFSET, maintain_order=True).unique(
        subset=[EVENT_ID], keep="first", maintain_order=True
    )
    return events if positions else events.drop(PARTITION, OFFSET)


def _in_order(segments: Iterable[Segment]) -> list[Segment]:
    return sorted(segments, key=lambda s: (s.partition, s.first_offset))


def batch_fields(view: View, entity: Entity, source: Source) -> list[str]:
    """The fields of a source that the rows of a batch view are made of."""
    assert isinstance(view.kind, BatchView)
    names = [k.name for k in entity.join_keys] + [f.field or f.name for f in view.kind.features]
    return list(
        dict.fromkeys([*names, source.created_field or source.timestamp_field, source.timestamp_field])
    )


def batch_rows(frame: pl.DataFrame, view: View, entity: Entity, source: Source) -> pl.DataFrame:
    """Rows of a batch view (see `SourceReader.read_batch_rows`) out of rows of its source, typed as declared."""
    assert isinstance(view.kind, BatchView)
    keys = [k.name for k in entity.join_keys]
    frame = frame.filter(pl.all_horizontal(pl.col(k).is_not_null() for k in keys))
    return frame.select(
        *keys,
        *(
            to_type(f.field or f.name, frame.schema[f.field or f.name], f.data_type, f.vector_size).alias(
                f.name
            )
            for f in view.kind.features
        ),
        pl.col(source.timestamp_field).alias(ROW_EVENT_TIME),
        pl.coalesce(source.created_field or source.timestamp_field, source.timestamp_field).alias(
            ROW_CREATED_TIME
        ),
    )


def declared_rows(
    source: Source, names: Sequence[str], frame: pl.DataFrame, low: int | None = None, high: int | None = None
) -> pl.DataFrame:
    """Rows of a source as stored → typed as declared, with low <= event time < high. Raises FailedPrecondition SOURCE_MISMATCH."""
    _check_stored(source, names, frame.schema)
    return _in_range(_as_declared(source, names, frame), source.timestamp_field, low, high)


async def wait_until_archived(
    archive: Archive, clock: Clock, sources: Iterable[Source], *, timeout_seconds: float, job: JobProgress
) -> None:
    """Return once every event that the streams hold now is in the archive, so that nothing pushed before is missed.

    Raises FailedPrecondition ARCHIVE_BEHIND when that takes longer than `timeout_seconds`.
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
                raise FailedPrecondition(
                    f"The archive of {source.name} is {missing} events behind its topic after {timeout_seconds:g} s: see that "
                    "`flywheel-feature materialize` runs, then ask again.",
                    reason="ARCHIVE_BEHIND",
                    source=source.name,
                    missing_events=missing,
                )
            job.progress(0, 0, "rows", f"waiting for {missing} events of {source.id} to be archived")
            await clock.sleep(POLL_SECONDS)


def _missing(target: Mapping[int, int], archived: Mapping[int, int]) -> int:
    return sum(max(end - archived.get(partition, 0), 0) for partition, end in target.items())


def _overlaps(segment: Segment, low: int | None, high: int | None) -> bool:
    return (low is None or segment.max_time >= low) and (high is None or segment.min_time < high)


def _in_range(frame: pl.DataFrame, column: str, low: int | None, high: int | None) -> pl.DataFrame:
    time = pl.col(column).dt.epoch("us")
    kept = pl.col(column).is_not_null()
    if low is not None:
        kept = kept & (time >= low)
    if high is not None:
        kept = kept & (time < high)
    return frame.filter(kept)


def _fields(source: Source, names: Sequence[str]) -> list[tuple[str, Field]]:
    return [(n, f) for n in names if (f := source.field(n)) is not None]


def _check_stored(source: Source, names: Sequence[str], stored: Mapping[str, pl.DataType]) -> None:
    for name, field in _fields(source, names):
        if name not in stored:
            raise _mismatch(source, f"the files have no column {name!r}")
        if not (fits(stored[name], field.data_type) or stored[name] == pl.Null):
            raise _mismatch(
                source,
                f"column {name!r} is stored as {stored[name]}, declared as {DataType(field.data_type).name}",
            )


def _as_declared(
    source: Source, names: Sequence[str], frame: pl.DataFrame, extra: Sequence[str] = (), text: Sequence[tuple[str, Field]] = (),
) -> pl.DataFrame:  # fmt: skip
    """`text`: fields whose column is the text of a partition."""
    fields = _fields(source, names)
    try:
        frame = frame.with_columns(from_text(n, f.data_type) for n, f in text)
        return frame.select(
            *(to_type(n, frame.schema[n], f.data_type, f.vector_size) for n, f in fields), *extra
        )
    except pl.exceptions.ColumnNotFoundError as error:
        raise _mismatch(source, f"a column is missing: {str(error).splitlines()[0]}") from error
    except KeyError as error:
        raise _mismatch(source, f"the files have no column {error}") from error
    except pl.exceptions.PolarsError as error:
        raise _mismatch(
            source, f"a value does not fit its declared type: {str(error).splitlines()[0][:200]}"
        ) from error


def _mismatch(source: Source, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"Source {source.id!r} is not what its schema says: {why}.",
        reason="SOURCE_MISMATCH",
        source=source.name,
    )
