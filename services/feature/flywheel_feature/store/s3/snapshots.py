"""The files of Parquet tables as pieces: complete files, or row groups of them."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as fs
import pyarrow.parquet as pq

from flywheel_feature.tables.ports import Piece, TableSnapshot

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def of_files(files_system: fs.FileSystem, files: Sequence[str], base: str) -> TableSnapshot:
    """A snapshot of the files below the folder `base`; `key=value` folders become columns.

    The types are those of the first file.
    """
    pieces = tuple(Piece(f"s3://{path}", partition=_hive(path[len(base) :])) for path in files)
    schema = fragment(files_system, files[0], pieces[0]).physical_schema
    return TableSnapshot(pieces, stored_types(schema, [name for name, _ in pieces[0].partition]))


def stored_types(schema: pa.Schema, partitions: Sequence[str]) -> dict[str, pl.DataType]:
    """The types of the columns of a file, and text for the partition columns."""
    empty = pl.from_arrow(schema.empty_table())
    assert isinstance(empty, pl.DataFrame)
    types = dict(zip(empty.columns, empty.dtypes, strict=True))
    return types | {name: pl.String() for name in partitions if name not in types}


def _hive(path: str) -> tuple[tuple[str, str | None], ...]:
    folders = [folder.partition("=") for folder in path.split("/")[:-1] if "=" in folder]
    return tuple((name, None if value == HIVE_NULL else unquote(value)) for name, _, value in folders)


def fragment(files_system: fs.FileSystem, path: str, piece: Piece) -> ds.ParquetFileFragment:
    return ds.ParquetFileFormat().make_fragment(
        path, filesystem=files_system, row_groups=list(piece.groups) or None
    )


def split(files_system: fs.FileSystem, path: str, piece: Piece, most_rows: int) -> list[Piece]:
    """The row groups of a file in pieces of at most `most_rows` rows; no piece for a file without rows."""
    metadata = pq.read_metadata(path, filesystem=files_system)
    pieces: list[Piece] = []
    groups: list[int] = []
    rows = 0
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        if groups and rows + count > most_rows:
            pieces.append(Piece(piece.uri, rows, tuple(groups), piece.partition))
            groups, rows = [], 0
        if count:
            groups.append(group)
            rows += count
    if groups:
        pieces.append(Piece(piece.uri, rows, tuple(groups), piece.partition))
    return pieces


def with_partition(frame: pl.DataFrame, height: int, piece: Piece, wanted: Sequence[str]) -> pl.DataFrame:
    """The wanted columns: from the file, from the partition (as text), or null."""
    partition = dict(piece.partition)
    columns: dict[str, pl.Series] = {}
    for name in wanted:
        if name in frame.columns:
            columns[name] = frame.get_column(name)
        elif name in partition:
            columns[name] = pl.Series([partition[name]], dtype=pl.String).new_from_index(0, height)
        else:
            columns[name] = pl.Series([None], dtype=pl.Null).new_from_index(0, height)
    return pl.DataFrame(columns)
