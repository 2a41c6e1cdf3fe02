"""What the offline use cases need from the outside."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import polars as pl

from flywheel_feature.catalog import Catalog
from flywheel_feature.definitions import TableFormat
from flywheel_feature.offline.training_sets import TrainingSet


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


class Workspace(Protocol):
    """Files of one piece of work, below one folder. Methods block; each raises Unavailable OBJECT_STORE_DOWN while the store is away.

    A file appears whole or not at all. Two processes that write one key at a time leave one of the two files.
    """

    def keys(self, prefix: str = "") -> list[str]: ...

    def write(self, key: str, frame: pl.DataFrame, groups: Sequence[int]) -> None:
        """Parquet with row groups of these numbers of rows."""
        ...

    def read(self, prefix: str, columns: Sequence[str], where: Between | None = None) -> pl.DataFrame:
        """Rows of the Parquet files whose key begins so: by key, rows in file order. `where` skips row groups by their statistics.

        Raises NotFound when there is no file.
        """
        ...

    def write_json(self, key: str, value: object) -> None:
        self.write_bytes(key, json.dumps(value).encode())

    def read_json(self, key: str) -> Any:
        """None when there is no such file."""
        content = self.read_bytes(key)
        return None if content is None else json.loads(content)

    def write_bytes(self, key: str, content: bytes) -> None: ...

    def read_bytes(self, key: str) -> bytes | None:
        """None when there is no such file."""
        ...

    def delete(self) -> None:
        """Everything; nothing when there is nothing."""
        ...


class PartitionEngine(Protocol):
    """Where joins in partitions are computed."""

    name: str

    def workspace(self, name: str) -> Workspace:
        """The folder of one piece of work, which every process of this engine can reach; it need not exist."""
        ...

    async def run(self, name: str, job: JobProgress) -> None:
        """Carry out the spec in a workspace until its result or its error is there; finished tasks are not done again.

        Work that was begun by an earlier process goes on.
        Raises Unavailable ENGINE_UNAVAILABLE when the engine does not answer or the work died.
        """
        ...

    async def discard(self, name: str) -> None:
        """Nobody wants this work any more: end it where it still runs, then remove its folder. Nothing there: nothing happens.

        Raises Unavailable ENGINE_UNAVAILABLE, OBJECT_STORE_DOWN; what is left then goes when it is called again.
        """
        ...


Catalogs = Callable[[str], Awaitable[Catalog]]
"""The applied definitions of a project."""


class TrainingSets(Protocol):
    """Built training sets: a set exists when its row does."""

    async def create(self, training_set: TrainingSet) -> None:
        """Raises AlreadyExists TRAINING_SET_EXISTS when the name is taken."""
        ...

    async def get(self, project: str, training_set_id: str) -> TrainingSet | None: ...

    async def list(
        self,
        project: str,
        *,
        feature_set: str = "",
        text: str = "",
        before: tuple[datetime, str] | None = None,
        limit: int = 100,
    ) -> list[TrainingSet]:
        """Newest first by (created_at, id); `feature_set` is a resource name with or without version, empty: all.
        `text`: only sets whose id contains it.

        `before` is (created_at, id) of the last one seen.
        """
        ...


class JobProgress(Protocol):
    """The part of jobs.JobContext that long work reports to."""

    def progress(self, done: int, total: int, unit: str = "", message: str = "") -> None: ...

    def check_cancelled(self) -> None: ...


class ResumableJob(JobProgress, Protocol):
    """The part of jobs.JobContext that lets work start again where an earlier process began."""

    checkpoint: bytes
    """What was saved last, also by an earlier process; empty at the first start."""

    async def save_checkpoint(self, checkpoint: bytes) -> None:
        """It is kept when this returns."""
        ...


def is_cancelled(job: JobProgress) -> bool:
    """Whether `check_cancelled` would raise."""
    try:
        job.check_cancelled()
    except Exception:  # noqa: BLE001 - whatever it raises, it says that the job is to stop
        return True
    return False
