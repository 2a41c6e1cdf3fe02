"""Parquet tables in memory, for unit tests: frames by address. The contract tests run over them too.

Ports: tables.ports.Tables and TableFiles, erasure.ports.Objects, and the narrower ports of ingest. No Delta
tables.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import polars as pl

from flywheel_common.errors import FlywheelError
from flywheel_feature.definitions.errors import InvalidUri
from flywheel_feature.definitions.model import TableFormat
from flywheel_feature.tables.errors import TableChanged, UnknownTable, UnsupportedFormat
from flywheel_feature.tables.ports import Between, Piece, TableFile, TableSnapshot

_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.+)")
Partition = tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class _File:
    frame: pl.DataFrame
    stamp: str
    written_at: float


class MemoryTables:
    """Tables of one bucket, and of any other address that is written to."""

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
            raise UnsupportedFormat(f"{uri} is not a plain Parquet table.")
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
        if not uris:
            return pl.DataFrame({c: [] for c in wanted})
        frames = [self._file(uri, listed=False).frame for uri in uris]
        parts = [frame.select(c for c in wanted if c in frame.columns) for frame in frames]
        rows = pl.concat(parts, how="diagonal_relaxed")
        missing = [pl.lit(None, pl.Null).alias(c) for c in wanted if c not in rows.columns]
        return rows.with_columns(missing).select(wanted)

    def write(self, uri: str, frame: pl.DataFrame) -> None:
        _check_uri(uri)
        self._writes += 1
        self._files[uri] = _File(frame, str(self._writes), time.time())

    def remove(self, uri: str, *, keep: str = "") -> None:
        for found in [u for u in self._files if u.startswith(uri) and not (keep and u.startswith(keep))]:
            del self._files[found]

    async def delete(self, key: str) -> None:
        """Delete an object of the own bucket, by its key."""
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
        return [self._file(uri, listed=False).frame.height for uri in uris]

    def batches(
        self, file: TableFile, columns: Sequence[str], where: Between | None, rows: int, skip: int
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        partition = dict(_hive(file.uri[len(file.table) :])) if file.table.endswith("/") else {}
        frame = self._file(file.uri, listed=False).frame
        frame = frame.with_columns(pl.lit(v, pl.String).alias(n) for n, v in partition.items())
        is_timestamp = where is not None and isinstance(frame.schema.get(where.column), pl.Datetime)
        selected = within(frame, where if is_timestamp else None)
        selected = selected.select(c for c in columns if c in frame.columns)
        for number, offset in enumerate(range(0, selected.height, rows), start=1):
            if number > skip:
                yield number, selected.slice(offset, rows)

    def _file(self, uri: str, *, listed: bool = True) -> _File:
        """`listed`: the file existed when its table was listed."""
        _check_uri(uri)
        if uri not in self._files:
            if listed:
                raise TableChanged(f"{uri} was deleted while its table was read: retry.")
            raise _unknown(uri)
        return self._files[uri]

    def _found(self, uri: str) -> list[str]:
        """Files at a key or below a prefix, by path, without hidden files (like _manifest or .staging)."""
        _check_uri(uri)
        if not uri.endswith("/"):
            found = [uri] if uri in self._files else []
        else:
            below = (u for u in self._files if u.startswith(uri) and u.endswith(".parquet"))
            found = sorted(u for u in below if not re.search(r"(^|/)[_.]", u[len(uri) :]))
        if not found:
            raise _unknown(uri)
        return found


def _unknown(uri: str) -> UnknownTable:
    return UnknownTable(f"There is no Parquet at {uri}: check the address, or write it first.")


def _check_uri(uri: str) -> None:
    match = _URI.fullmatch(uri)
    if match is None or ".." in match.group(2).split("/"):
        raise InvalidUri(f"{uri[:200]!r} is not an address of the form s3://bucket/key.")


def _hive(path: str) -> Partition:
    folders = [folder.partition("=") for folder in path.split("/")[:-1] if "=" in folder]
    return tuple((n, None if v == "__HIVE_DEFAULT_PARTITION__" else unquote(v)) for n, _, v in folders)


def within(frame: pl.DataFrame, where: Between | None) -> pl.DataFrame:
    """The rows that `where` selects by a column of timestamps or integers."""
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
