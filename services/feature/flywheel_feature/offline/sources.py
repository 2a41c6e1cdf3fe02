"""Reading sources: Parquet tables as they lie on S3, and streams from the archive of their events."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import polars as pl

from flywheel_common.clock import Clock
from flywheel_common.errors import FailedPrecondition, InvalidArgument, NotFound
from flywheel_feature.definitions import (
    BatchView,
    DataType,
    Entity,
    Field,
    ParquetSource,
    Source,
    TableFormat,
    View,
)
from flywheel_feature.offline.datatypes import fits, polars_type, to_type
from flywheel_feature.offline.ports import Archive, Between, JobProgress, Segment, Tables

EVENT_ID, PARTITION, OFFSET = "__event_id", "__partition", "__offset"
"""Columns that the archive adds to a source's schema."""

ROW_EVENT_TIME, ROW_CREATED_TIME = "__event_time", "__created_time"
"""Times of the rows that `read_batch_rows` answers."""

POLL_SECONDS = 0.2


class SourceReader:
    """Reads columns of sources as declared. Work on files happens in threads, so the event loop goes on."""

    def __init__(self, tables: Tables, archive: Archive) -> None:
        self._tables = tables
        self._archive = archive

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
            rows = pl.DataFrame(
                schema={n: polars_type(f.data_type, f.vector_size) for n, f in _fields(source, names)}
            )
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
        places = {PARTITION: pl.Int32, OFFSET: pl.Int64} if positions else {}
        uris = [s.uri for s in sorted(segments, key=lambda s: (s.partition, s.first_offset))]
        if not uris:
            empty = {
                n: pl.Series([], dtype=polars_type(f.data_type, f.vector_size))
                for n, f in _fields(source, names)
            }
            extra = {EVENT_ID: pl.String, **places}
            return pl.DataFrame({**empty, **{n: pl.Series([], dtype=t) for n, t in extra.items()}})
        frame = self._tables.read_files(uris, [*names, EVENT_ID, PARTITION, OFFSET])
        frame = frame.sort(PARTITION, OFFSET, maintain_order=True).unique(
            subset=[EVENT_ID], keep="first", maintain_order=True
        )
        return _in_range(
            _as_declared(source, names, frame, extra=[EVENT_ID, *places]), source.timestamp_field, low, high
        )

    def _read_table(
        self, source: Source, kind: ParquetSource, names: list[str], low: int | None, high: int | None
    ) -> pl.DataFrame:
        if kind.format != TableFormat.PARQUET:
            raise InvalidArgument(
                f"Source {source.id!r} is a {kind.format.name} table; only PARQUET can be read so far.",
                reason="UNSUPPORTED_FORMAT",
            )
        stored = self._tables.schema(kind.uri)
        _check_stored(source, names, stored)
        # A filter is pushed down to the files only where they hold real timestamps.
        pushed = stored[source.timestamp_field].is_temporal() and not (low is None and high is None)
        where = Between(source.timestamp_field, low, high) if pushed else None
        frame = _as_declared(source, names, self._tables.read(kind.uri, names, where))
        return _in_range(frame, source.timestamp_field, low, high)


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
    source: Source, names: Sequence[str], frame: pl.DataFrame, extra: Sequence[str] = ()
) -> pl.DataFrame:
    fields = _fields(source, names)
    try:
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
