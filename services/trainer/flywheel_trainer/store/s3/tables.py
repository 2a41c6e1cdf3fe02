"""Training sets as Parquet files on S3.

What reads them is imported on use: pyarrow and its client of S3 take 50 MiB, which few services need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl
    from pyarrow import fs


class ParquetTables:
    """`TableReader` over the Parquet files of an object store."""

    def __init__(self, open_store: Callable[[], fs.FileSystem]) -> None:
        self._open_store = open_store

    def __call__(self, uri: str, columns: list[str]) -> pl.DataFrame:
        from flywheel_job import objects

        return objects.read_table(self._open_store(), uri, columns)
