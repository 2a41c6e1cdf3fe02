"""Parquet tables in memory, for unit tests: frames by address. Held to the same contract suite as store/table_files.py.

Ports: offline.ports.Tables, materialize_view.TableFiles, erasure_ports.Objects, archive_replay.FileReader, push_log.FrameWriter,
archiving.FrameWriter, validating.Files. Knows plain Parquet alone: no Delta tables.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import polars as pl

from flywheel_common.errors import FailedPrecondition, FlywheelError, InvalidArgument, NotFound
from flywheel_feature.definitions.model import TableFormat
from flywheel_feature.tables.ports import Between, Piece, TableFile, TableSnapshot

_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.+)")
Partition = tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class _File:
    frame: pl.DataFrame
    stamp: str
    written_at: float


class MemoryTables:
    def __init__(self, bucket: str = "memory") -> None:
        self._bucket = bucket
        self._files: dict[str, _File] = {}
        self._writes = 0

    def bucket_uri(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    def schema(self, uri: str) -> dict[str, pl.DataType]:
        return dict(self.snapshot(uri, TableFormat.PARQUET).stored)

    def read(self, uri: str, columns: Sequence[str], where: Between | None = None) -> pl.DataFrame:
        files = self.snapshot(uri, TableFormat.PARQUET).files
        return pl.concat([self.read_piece(f, columns, where) for f in files], how="vertical_relaxed")

    def snapshot(self, uri: str, table_format: TableFormat, version: int = -1) -> TableSnapshot:
        if table_format != TableFormat.PARQUET:
            raise FailedPrecondition(f"{uri} is no plain Parquet.", reason="UNSUPPORTED_FORMAT")
        base = len(uri) if uri.endswith("/") else 0
        pieces = tuple(Piece(f, partition=_hive(f[base:]) if base else ()) for f in self._found(uri))
        stored = dict(self._files[pieces[0].uri].frame.schema)
        return TableSnapshot(pieces, {n: pl.String() for n, _ in pieces[0].partition} | stored)

    def pieces(self, files: Sequence[Piece], most_rows: int) -> list[Piece]:
        found = []
        for piece in files:
            rows = self._file(piece.uri).frame.height
            if rows:
                found.append(Piece(piece.uri, rows, (0,), piece.partition))
        return found

    def read_piece(self, piece: Piece, columns: Sequence[str], where: Between | None = None) -> pl.DataFrame:
        frame = self._file(piece.uri).frame
        frame = within(frame, where if where is not None and where.column in frame.columns else None)
        partition = dict(piece.partition)
        wanted = []
        for name in dict.fromkeys(columns):
            if name in frame.columns:
                wanted.append(frame.get_column(name))
            else:
                kind = pl.String if name in partition else pl.Null
                wanted.append(pl.Series(name, [partition.get(name)] * frame.height, dtype=kind))
        return pl.DataFrame(wanted)

    def read_files(self, uris: Sequence[str], columns: Sequence[str]) -> pl.DataFrame:
        wanted = list(dict.fromkeys(columns))
        frames = [self._file(uri, gone=False).frame for uri in uris]
        held = [frame.select(c for c in wanted if c in frame.columns) for frame in frames]
        whole = pl.concat(held, how="diagonal_relaxed") if held else pl.DataFrame()
        missing = [pl.lit(None, pl.Null).alias(c) for c in wanted if c not in whole.columns]
        return whole.with_columns(missing).select(wanted) if held else pl.DataFrame({c: [] for c in wanted})

    def write(self, uri: str, frame: pl.DataFrame) -> None:
        _checked(uri)
        self._writes += 1
        self._files[uri] = _File(frame, str(self._writes), time.time())

    def remove(self, uri: str, *, keep: str = "") -> None:
        for found in [u for u in self._files if u.startswith(uri) and not (keep and u.startswith(keep))]:
            del self._files[found]

    async def delete(self, key: str) -> None:
        """One object of the own bucket, by its key."""
        self._files.pop(self.bucket_uri(key), None)

    def files(self, uri: str, table_format: TableFormat = TableFormat.PARQUET) -> list[TableFile]:
        return [
            TableFile(piece.uri, uri, self._files[piece.uri].stamp)
            for piece in self.snapshot(uri, table_format).files
        ]

    def older_than(self, uri: str, seconds: float) -> list[str]:
        limit = time.time() - seconds
        return sorted(u for u, f in self._files.items() if u.startswith(uri) and f.written_at < limit)

    def row_counts(self, uris: Sequence[str]) -> list[int | FlywheelError]:
        return [self._file(uri, gone=False).frame.height for uri in uris]

    def batches(
        self, file: TableFile, columns: Sequence[str], where: Between | None, rows: int, skip: int
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        partition = dict(_hive(file.uri[len(file.table) :])) if file.table.endswith("/") else {}
        whole = self._file(file.uri, gone=False).frame
        whole = whole.with_columns(pl.lit(v, pl.String).alias(n) for n, v in partition.items())
        timed = where is not None and isinstance(whole.schema.get(where.column), pl.Datetime)
        cut = within(whole, where if timed else None).select(c for c in columns if c in whole.columns)
        for number, offset in enumerate(range(0, cut.height, rows), start=1):
            if number > skip:
                yield number, cut.slice(offset, rows)

    def _file(self, uri: str, *, gone: bool = True) -> _File:
        """`gone`: it was there when its table was listed."""
        _checked(uri)
        if uri not in self._files:
            if gone:
                raise FailedPrecondition(f"{uri} went away while its table was read.", reason="TABLE_CHANGED")
            raise _unknown(uri)
        return self._files[uri]

    def _found(self, uri: str) -> list[str]:
        """Files at a key or below a prefix, by path; what is hidden, like _manifest or .staging, is no data."""
        _checked(uri)
        if not uri.endswith("/"):
            found = [uri] if uri in self._files else []
        else:
            below = (u for u in self._files if u.startswith(uri) and u.endswith(".parquet"))
            found = sorted(u for u in below if not re.search(r"(^|/)[_.]", u[len(uri) :]))
        if not found:
            raise _unknown(uri)
        return found


def _unknown(uri: str) -> NotFound:
    return NotFound(
        f"There is no Parquet at {uri}: check the address, or write it first.", reason="UNKNOWN_TABLE"
    )


def _checked(uri: str) -> None:
    match = _URI.fullmatch(uri)
    if match is None or ".." in match.group(2).split("/"):
        raise InvalidArgument(
            f"{uri[:200]!r} is not an address of the form s3://bucket/key.", reason="INVALID_URI"
        )


def _hive(path: str) -> Partition:
    folders = [folder.partition("=") for folder in path.split("/")[:-1] if "=" in folder]
    return tuple((n, None if v == "__HIVE_DEFAULT_PARTITION__" else unquote(v)) for n, _, v in folders)


def within(frame: pl.DataFrame, where: Between | None) -> pl.DataFrame:
    """Rows whose column lies there: a time in microseconds, or a whole number."""
    if where is None:
        return frame
    value = pl.col(where.column)
    if isinstance(frame.schema[where.column], pl.Datetime):
        value = value.dt.epoch("us")
    kept = value.is_not_null()
    if where.low is not None:
        kept &= value >= where.low
    if where.high is not None:
        kept &= value < where.high
    return frame.filter(kept)
