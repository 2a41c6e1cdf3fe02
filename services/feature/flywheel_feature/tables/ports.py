"""Ports of offline tables: files, snapshots, the archive of events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import polars as pl

from flywheel_common.errors import FlywheelError
from flywheel_feature.definitions.model import TableFormat


@dataclass(frozen=True, slots=True)
class TableFile:
    """One file of a table."""

    uri: str
    stamp: str
    """Equal stamps mean equal contents. A file with an empty stamp is read again each time."""
    partition: tuple[tuple[str, str | None], ...] = ()
    """As in `Piece`."""
    pushed: bool = False
    """The file has rows that were pushed to the view; its columns have the names of the fields."""


@dataclass(frozen=True, slots=True)
class Footer:
    """The number of rows of a Parquet file, and the names of its columns."""

    rows: int
    columns: frozenset[str]


class Footers(Protocol):
    """Reads the footers of Parquet files."""

    def footers(self, uris: Sequence[str]) -> list[Footer | FlywheelError]:
        """The footer of each file, or the error with which reading it fails; that error is not retryable.

        Raises Unavailable OBJECT_STORE_DOWN.
        """
        ...


class TableFiles(Footers, Protocol):
    """Reads files in batches. Methods block, may be called from any thread, and raise as `Tables` does."""

    def files(self, uri: str, table_format: TableFormat) -> list[TableFile]:
        """The files of a table now, by path. Reads no file of a Parquet table.

        Raises NotFound UNKNOWN_TABLE when there is none.
        """
        ...

    def batches(
        self, file: TableFile, columns: Sequence[str], where: Between | None, rows: int, skip: int
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        """(number of the batch from 1, its rows) for all batches of up to `rows` rows after the first `skip`.

        A file is always split into the same batches. Columns and filter are those of `Tables.read_piece`.
        """
        ...


@dataclass(frozen=True, slots=True)
class SeenFile:
    """What a view version has read of a file."""

    stamp: str
    """The stamp of the contents that were read as a whole; empty: none."""
    due: int = 0
    """The earliest time at which a row becomes valid that is not online yet, microseconds; 0: none."""
    read_at: int = 0
    """When these rows were read, microseconds; 0 without such rows."""


class SeenFiles(Protocol):
    """Remembers per view version which files were materialized, and which have rows that become valid later.

    Raises Unavailable.
    """

    async def seen(self, project: str, view: str, version: int) -> Mapping[str, SeenFile]:
        """uri → what was read of it."""
        ...

    async def mark_seen(self, project: str, view: str, version: int, uri: str, seen: SeenFile) -> None:
        """Remember a file; this replaces what was remembered of it."""
        ...

    async def mark_due(self, project: str, view: str, version: int, uri: str, later: SeenFile) -> None:
        """Remember that a row of a file becomes valid at `later.due`; earlier times and stamps are kept."""
        ...

    async def due(self, now: int) -> Mapping[tuple[str, str, int], int]:
        """(project, view, version) → the earliest `due` of its files that is not after `now`."""
        ...

    async def forget_files(self, project: str, view: str, version: int) -> None:
        """Forget all files of a view version, so that they are materialized again."""
        ...


class PushedFiles(Protocol):
    """The files of rows that were pushed to batch views."""

    async def pushed(self, project: str, view: str) -> list[TableFile]:
        """The files of a view, in the order in which their pushes were acknowledged."""
        ...


@dataclass(frozen=True, slots=True)
class Between:
    """Selects rows with low <= column < high, in microseconds, without nulls; None is no bound."""

    column: str
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Row groups of one Parquet file: the unit of reading."""

    uri: str
    rows: int = 0
    groups: tuple[int, ...] = ()
    """Row groups in file order; empty: the whole file."""
    partition: tuple[tuple[str, str | None], ...] = ()
    """(column, value as text) of Hive folders and Delta partitions."""
    pushed: bool = False
    """As in `TableFile`."""


@dataclass(frozen=True, slots=True)
class TableSnapshot:
    """The files of a table at one moment, in row order. Reading a snapshot twice gives the same rows."""

    files: tuple[Piece, ...]
    stored: Mapping[str, pl.DataType]
    """The stored types of the columns; partition columns are text."""
    version: int = -1
    """The version of a Delta table; -1 for a table without versions."""


class FrameWriter(Protocol):
    """Writes Parquet files into the service's own bucket. Methods block and may be called from any thread."""

    def bucket_uri(self, key: str) -> str:
        """`s3://bucket/key` in the service's own bucket."""
        ...

    def write(self, uri: str, frame: pl.DataFrame) -> None:
        """Write one Parquet file, completely or not at all; an existing file is replaced."""
        ...


class Tables(FrameWriter, Footers, Protocol):
    """Parquet tables on an object store. Methods block and may be called from any thread.

    The address of a table is that of a file or of a folder; repeated and final slashes do not matter.

    All methods raise NotFound UNKNOWN_TABLE for a missing table, DataLoss CORRUPT_TABLE for a file that is
    not Parquet, InvalidArgument INVALID_URI for an address that may not be read, and Unavailable
    OBJECT_STORE_DOWN when the store does not answer.
    """

    def schema(self, uri: str) -> dict[str, pl.DataType]:
        """The stored types of the columns of the first file, and text for Hive folders."""
        ...

    def read(self, uri: str, columns: Sequence[str], where: Between | None = None) -> pl.DataFrame:
        """The rows of a table; files are in the order of their paths, rows in file order."""
        ...

    def snapshot(self, uri: str, table_format: TableFormat, version: int = -1) -> TableSnapshot:
        """The table now, or in a version. Reads no rows.

        Also raises FailedPrecondition UNSUPPORTED_FORMAT for a table with reader features that this service
        does not support, and TABLE_CHANGED for a version that was deleted.
        """
        ...

    def pieces(self, files: Sequence[Piece], most_rows: int) -> list[Piece]:
        """The same rows in the same order, in pieces of up to `most_rows` rows; row groups are not split."""
        ...

    def read_piece(self, piece: Piece, columns: Sequence[str], where: Between | None = None) -> pl.DataFrame:
        """The rows of a piece, with those of the columns that its file has.

        `where` may filter the rows: by a column of timestamps, and not on every file. Raises
        FailedPrecondition TABLE_CHANGED when the file of the piece was deleted, FailedPrecondition
        UNSUPPORTED_FORMAT when it has a column twice, and WrongType for a decimal of more than 38 digits that
        would become a whole float. All but WrongType name the file.
        """
        ...

    def read_files(self, uris: Sequence[str], columns: Sequence[str]) -> pl.DataFrame:
        """The rows of these files, in this order. A column that a file lacks is null."""
        ...

    def remove(self, uri: str, *, keep: str = "") -> None:
        """Remove all files below a prefix that ends in `/`, except those below `keep`; there may be none."""
        ...


@dataclass(frozen=True, slots=True)
class Segment:
    """One archived file of a source: the events first_offset … next_offset - 1 of a partition."""

    uri: str
    partition: int
    first_offset: int
    next_offset: int
    min_time: int
    max_time: int
    """Event times of the earliest and the latest event, microseconds."""
    event_count: int


class Archive(Protocol):
    """The archived events of stream sources, and the positions up to which they are archived."""

    async def segments(self, project: str, source: str) -> Sequence[Segment]:
        """The committed segments. Each event of the source is in exactly one of them."""
        ...

    async def archived_offsets(self, project: str, source: str) -> Mapping[int, int]:
        """Per partition the offset below which all events are archived; empty partitions may be missing."""
        ...

    async def end_offsets(self, project: str, source: str) -> Mapping[int, int]:
        """Per partition the end of the topic now. Raises Unavailable while Kafka is unreachable."""
        ...

    async def pushed_uris(self, project: str, view: str) -> Sequence[str]:
        """The files of rows pushed to a batch view, in the order in which the pushes were acknowledged."""
        ...
