"""Parquet tables in memory, for unit tests: frames by address. The contract tests run over them too.

Ports: tables.ports.Tables and TableFiles, erasure.ports.Objects, and the narrower ports of ingest. No Delta
tables.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import polars as pl

from flywheel_common.errors import FlywheelError
from flywheel_feature.definitions.model import TableFormat
from flywheel_feature.tables.addresses import hive_columns, is_data_file, object_path
from flywheel_feature.tables.errors import TableChanged, UnknownTable, UnsupportedFormat
from flywheel_feature.tables.ports import Between, Footer, Piece, TableFile, TableSnapshot


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
        base = len(_normal(uri))
        pieces = tuple(Piece(f, partition=hive_columns(f[base:])) for f in self._found(uri))
        stored = dict(self._files[pieces[0].uri].frame.schema)
        return TableSnapshot(pieces, {n: pl.String() for n, _ in pieces[0].partition} | stored)

    def pieces(self, files: Sequence[Piece], most_rows: int) -> list[Piece]:
        found = []
        for piece in files:
            rows = self._file(piece.uri).frame.height
            if rows:
                found.append(replace(piece, rows=rows, groups=(0,)))
        return found

    def read_piece(self, piece: Piece, columns: Sequence[str], where: Between | None = None) -> pl.DataFrame:
        return _selected(self._file(piece.uri).frame, columns, where)

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
        self._writes += 1
        self._files[_normal(uri)] = _File(frame, str(self._writes), time.time())

    def remove(self, uri: str, *, keep: str = "") -> None:
        below, kept = f"{_normal(uri)}/", f"{_normal(keep)}/" if keep else None
        for found in [u for u in self._files if u.startswith(below)]:
            if kept is None or not found.startswith(kept):
                del self._files[found]

    async def delete(self, key: str) -> None:
        """Delete an object of the own bucket, by its key."""
        self._files.pop(self.bucket_uri(key), None)

    def files(self, uri: str, table_format: TableFormat = TableFormat.PARQUET) -> list[TableFile]:
        return [
            TableFile(piece.uri, self._files[piece.uri].stamp, piece.partition)
            for piece in self.snapshot(uri, table_format).files
        ]

    def older_than(self, uri: str, seconds: float) -> list[str]:
        limit = time.time() - seconds
        below = f"{_normal(uri)}/"
        return sorted(u for u, f in self._files.items() if u.startswith(below) and f.written_at < limit)

    def footers(self, uris: Sequence[str]) -> list[Footer | FlywheelError]:
        found: list[Footer | FlywheelError] = []
        for uri in uris:
            try:
                frame = self._file(uri, listed=False).frame
                found.append(Footer(frame.height, frozenset(frame.columns)))
            except FlywheelError as error:
                found.append(error)
        return found

    def batches(
        self, file: TableFile, columns: Sequence[str], where: Between | None, rows: int, skip: int
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        selected = _selected(self._file(file.uri, listed=False).frame, columns, where)
        for number, offset in enumerate(range(0, selected.height, rows), start=1):
            if number > skip:
                yield number, selected.slice(offset, rows)

    def _file(self, uri: str, *, listed: bool = True) -> _File:
        """`listed`: the file existed when its table was listed."""
        file = self._files.get(_normal(uri))
        if file is None:
            if listed:
                raise TableChanged(f"{uri} was deleted while its table was read: retry.")
            raise _unknown(uri)
        return file

    def _found(self, uri: str) -> list[str]:
        """The file at an address, or the files of the table below it, by path."""
        address = _normal(uri)
        if address in self._files:
            return [address]
        below = f"{address}/"
        found = [u for u in self._files if u.startswith(below) and is_data_file(u[len(below) :])]
        if not found:
            raise _unknown(uri)
        return sorted(found)


def _normal(uri: str) -> str:
    return f"s3://{object_path(uri)}"


def _unknown(uri: str) -> UnknownTable:
    return UnknownTable(f"There is no Parquet at {uri}: check the address, or write it first.")


def _selected(frame: pl.DataFrame, columns: Sequence[str], where: Between | None) -> pl.DataFrame:
    """Those of the columns that exist, filtered by a column of timestamps."""
    is_timestamp = where is not None and isinstance(frame.schema.get(where.column), pl.Datetime)
    rows = within(frame, where if is_timestamp else None)
    return rows.select(c for c in dict.fromkeys(columns) if c in frame.columns)


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
