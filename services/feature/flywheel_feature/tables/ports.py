"""What offline tables are read from: files, snapshots, the archive of pushed events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import polars as pl

from flywheel_common.errors import FlywheelError
from flywheel_feature.definitions.model import (
    TableFormat,
)


@dataclass(frozen=True, slots=True)
class TableFile:
    """`table` is the address of the whole table; equal stamps mean equal contents. An empty stamp is never remembered."""

    uri: str
    table: str
    stamp: str
    pushed: bool = False
    """Rows pushed to the view, not a file of its source."""


class TableFiles(Protocol):
    """Blocks; may be called from any thread. Errors as offline.ports.Tables."""

    def files(self, uri: str, table_format: TableFormat) -> list[TableFile]:
        """The Parquet files of a table as it is now, by path. NotFound UNKNOWN_TABLE when there is none."""
        ...

    def row_counts(self, uris: Sequence[str]) -> list[int | FlywheelError]:
        """Rows per file; the error where a file is no Parquet."""
        ...

    def batches(
        self, file: TableFile, columns: Sequence[str], where: Between | None, rows: int, skip: int
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        """(number of the batch from 1, its rows), at most `rows` each, after the first `skip` batches; the same file is always
        cut the same way. Hive partition columns are there; columns that the file lacks are not."""
        ...


class SeenFiles(Protocol):
    async def seen(self, project: str, view: str, version: int) -> Mapping[str, str]:
        """uri → stamp of the files whose rows are online."""
        ...

    async def mark_seen(self, project: str, view: str, version: int, uri: str, stamp: str) -> None:
        """The stamp that was marked last stands."""
        ...

    async def forget_files(self, project: str, view: str, version: int) -> None:
        """Every file of this view version is due again."""
        ...


class PushedFiles(Protocol):
    async def pushed(self, project: str, view: str) -> list[TableFile]:
        """In the order in which they were acknowledged."""
        ...


@dataclass(frozen=True, slots=True)
class Between:
    """Rows with low <= column < high, in microseconds; None: no bound. Rows where the column is null are left out."""

    column: str
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Some row groups of one Parquet file: the smallest thing that is read at a time."""

    uri: str
    rows: int = 0
    groups: tuple[int, ...] = ()
    """Row groups in file order; empty: the whole file."""
    partition: tuple[tuple[str, str | None], ...] = ()
    """Columns that the file does not hold, with their text: hive folders and Delta partitions."""


@dataclass(frozen=True, slots=True)
class TableSnapshot:
    """The files of a table at one moment, in the order in which their rows come. Reading it twice gives the same rows."""

    files: tuple[Piece, ...]
    stored: Mapping[str, pl.DataType]
    """Columns and their stored types; partition columns are text."""
    version: int = -1
    """The version of a Delta table; -1: the table has none."""


class Tables(Protocol):
    """Parquet on an object store. Methods block and may be called from any thread.

    Raise NotFound UNKNOWN_TABLE when nothing is there, DataLoss CORRUPT_TABLE for a file that is no Parquet, InvalidArgument
    INVALID_URI for an address that may not be read, Unavailable OBJECT_STORE_DOWN when the store does not answer.
    """

    def schema(self, uri: str) -> dict[str, pl.DataType]:
        """Columns and their stored types, hive partition columns included."""
        ...

    def read(self, uri: str, columns: Sequence[str], where: Between | None = None) -> pl.DataFrame:
        """Rows of every Parquet file at a key or below a prefix ending in `/`: files by path, rows in file order."""
        ...

    def snapshot(self, uri: str, table_format: TableFormat, version: int = -1) -> TableSnapshot:
        """The table as it is now, or as it was in a version. Reads no rows.

        Raises also FailedPrecondition UNSUPPORTED_FORMAT for a table that asks for more of its readers than is known here,
        TABLE_CHANGED for a version that is gone.
        """
        ...

    def pieces(self, files: Sequence[Piece], most_rows: int) -> list[Piece]:
        """The same rows in the same order, in pieces of at most `most_rows` rows (a row group is never cut)."""
        ...

    def read_piece(self, piece: Piece, columns: Sequence[str], where: Between | None = None) -> pl.DataFrame:
        """Rows of a piece; a column that it lacks is null. `where` may name a column only where it holds timestamps.

        Raises FailedPrecondition TABLE_CHANGED when the file of the piece is gone; as DataLoss does, it names the file.
        """
        ...

    def read_files(self, uris: Sequence[str], columns: Sequence[str]) -> pl.DataFrame:
        """Rows of these files, in this order. A column that a file lacks is null there."""
        ...

    def write(self, uri: str, frame: pl.DataFrame) -> None:
        """One Parquet file, whole or not at all; replaces what was there."""
        ...

    def remove(self, uri: str, *, keep: str = "") -> None:
        """Remove every file below a prefix ending in `/`, but for those below `keep`. Nothing there: nothing happens."""
        ...

    def bucket_uri(self, key: str) -> str:
        """`s3://bucket/key` in the service's own bucket."""
        ...


@dataclass(frozen=True, slots=True)
class Segment:
    """One archived file of a source: events first_offset … next_offset - 1 of a partition."""

    uri: str
    partition: int
    first_offset: int
    next_offset: int
    min_time: int
    max_time: int
    """Event times of the earliest and the latest event, microseconds."""
    event_count: int


class Archive(Protocol):
    """The archive of stream sources, and how far it has come."""

    async def segments(self, project: str, source: str) -> Sequence[Segment]:
        """Committed segments. Each event of the source is in one of them, once."""
        ...

    async def archived_offsets(self, project: str, source: str) -> Mapping[int, int]:
        """Per partition: every event below this offset is archived. A partition without events may be absent."""
        ...

    async def end_offsets(self, project: str, source: str) -> Mapping[int, int]:
        """Per partition: where the topic ends now. Raises Unavailable while Kafka is away."""
        ...

    async def pushed_uris(self, project: str, view: str) -> Sequence[str]:
        """Files of rows pushed to a batch view, in the order in which they were acknowledged."""
        ...
