"""The files of Parquet tables as pieces: complete files, or row groups of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as fs
import pyarrow.parquet as pq

from flywheel_feature.store.s3.arrow_frames import has_view, stored_types
from flywheel_feature.tables.addresses import hive_columns
from flywheel_feature.tables.errors import UnsupportedFormat
from flywheel_feature.tables.ports import Between, Piece, TableSnapshot


def of_files(files_system: fs.FileSystem, files: Sequence[str], base: str) -> TableSnapshot:
    """A snapshot of the files below the folder `base`; `key=value` folders become columns.

    The types are those of the first file.
    """
    pieces = tuple(Piece(f"s3://{path}", partition=hive_columns(path[len(base) :])) for path in files)
    schema = fragment(files_system, files[0], pieces[0]).physical_schema
    folders = {name: pl.String() for name, _ in pieces[0].partition}
    return TableSnapshot(pieces, folders | stored_types(schema))


def fragment(files_system: fs.FileSystem, path: str, piece: Piece) -> ds.ParquetFileFragment:
    # As nanoseconds, INT96 times after 2262 (such as 9999-12-31) would wrap around.
    return ds.ParquetFileFormat(coerce_int96_timestamp_unit="us").make_fragment(
        path, filesystem=files_system, row_groups=list(piece.groups) or None
    )


def scanner(
    fragment: ds.ParquetFileFragment, columns: Sequence[str], where: Between | None, **options: Any
) -> ds.Scanner:
    """Reads those of the columns that the file has, filtered by `where` where Arrow can filter.

    Raises FailedPrecondition UNSUPPORTED_FORMAT if a column exists twice.
    """
    schema = fragment.physical_schema
    present = [c for c in dict.fromkeys(columns) if c in schema.names]
    twice = [c for c in present if schema.names.count(c) > 1]
    if twice:
        raise UnsupportedFormat(
            f"s3://{fragment.path} has more than one column {twice[0]!r}: write it with different names."
        )
    condition = None
    if where is not None and not any(has_view(schema.field(c).type) for c in present):
        condition = _filter(schema, where)
    return fragment.scanner(columns=present, filter=condition, **options)


def _filter(schema: pa.Schema, where: Between) -> ds.Expression | None:
    """`where` as a filter of Arrow; None if its column is missing or has no timestamps."""
    if schema.names.count(where.column) != 1:
        return None
    stored = schema.field(where.column).type
    if not pa.types.is_timestamp(stored):
        return None
    kind = pa.timestamp("us", stored.tz)
    column = ds.field(where.column)
    condition = column.is_valid()
    for bound, lower in ((where.low, True), (where.high, False)):
        if bound is None:
            continue
        scalar = pa.scalar(bound, kind)
        # Compared in microseconds, so that a bound is not rounded to the column's seconds or milliseconds.
        left = column.cast(kind, safe=False) if stored != kind else column
        condition = condition & (left >= scalar if lower else left < scalar)
    return condition


def split(files_system: fs.FileSystem, path: str, piece: Piece, most_rows: int) -> list[Piece]:
    """The row groups of a file in pieces of at most `most_rows` rows; no piece for a file without rows."""
    metadata = pq.read_metadata(path, filesystem=files_system)
    pieces: list[Piece] = []
    groups: list[int] = []
    rows = 0
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        if groups and rows + count > most_rows:
            pieces.append(replace(piece, rows=rows, groups=tuple(groups)))
            groups, rows = [], 0
        if count:
            groups.append(group)
            rows += count
    if groups:
        pieces.append(replace(piece, rows=rows, groups=tuple(groups)))
    return pieces
