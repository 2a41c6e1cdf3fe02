"""Training sets as Parquet files on S3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyarrow import fs

from flywheel_job import objects

if TYPE_CHECKING:
    import polars as pl


class ParquetTables:
    """`TableReader` over the Parquet files of an object store."""

    def __init__(self, files: fs.FileSystem) -> None:
        self._files = files

    def __call__(self, uri: str, columns: list[str]) -> pl.DataFrame:
        return objects.read_table(self._files, uri, columns)
