"""Reads Parquet files batch by batch; the memory does not depend on the number of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from flywheel_common.value import from_micros
from flywheel_job import objects
from flywheel_job.errors import UnusableEvaluationSet
from flywheel_job.launch import TIME

BATCH_ROWS = 32_768


@dataclass(frozen=True)
class TimeRange:
    """Event times from `start` on and before `end`, in microseconds since the epoch; None: no bound."""

    start: int | None = None
    end: int | None = None

    def __bool__(self) -> bool:
        return self.start is not None or self.end is not None

    def __str__(self) -> str:
        first = "the beginning" if self.start is None else from_micros(self.start).isoformat()
        return f"from {first} to {'the end' if self.end is None else from_micros(self.end).isoformat()}"


def labelled_batches(
    store: fs.FileSystem,
    uri: str,
    columns: Sequence[str],
    label: str,
    times: TimeRange,
    *,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[pl.DataFrame]:
    """The rows with a label in a time range, at most `batch_rows` at a time, in the order of the files.

    Raises UnusableEvaluationSet if there are no files, a column is missing, or a file is no Parquet file.
    """
    wanted = list(dict.fromkeys([*columns, label, *([TIME] if times else [])]))
    paths = objects.files_under(store, uri, ".parquet")
    if not paths:
        raise UnusableEvaluationSet(f"There is no Parquet file at {uri}.")
    for path in paths:
        with store.open_input_file(path) as source:
            file = _opened(source, path)
            missing = [name for name in wanted if name not in file.schema_arrow.names]
            if missing:
                raise UnusableEvaluationSet(
                    f"{path} has no column {missing[0]!r}; it has: {', '.join(file.schema_arrow.names)}."
                )
            for batch in file.iter_batches(batch_rows, columns=wanted):
                frame = pl.from_arrow(batch)
                assert isinstance(frame, pl.DataFrame)
                yield _selected(frame, label, times)


def _opened(source: pa.NativeFile, path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(source, pre_buffer=False)
    except pa.ArrowInvalid as error:
        raise UnusableEvaluationSet(f"{path} is no Parquet file: {error}") from error


def _selected(frame: pl.DataFrame, label: str, times: TimeRange) -> pl.DataFrame:
    chosen = frame.filter(pl.col(label).is_not_null())
    if not times:
        return chosen
    if not isinstance(chosen.schema[TIME], pl.Datetime):
        raise UnusableEvaluationSet(f"Column {TIME!r} is {chosen.schema[TIME]}: a time range needs times.")
    at = pl.col(TIME).dt.epoch("us")
    if times.start is not None:
        chosen = chosen.filter(at >= times.start)
    return chosen if times.end is None else chosen.filter(at < times.end)
