"""The files of tables on S3, read in batches (port: tables.ports.TableFiles)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial

import polars as pl
import pyarrow as pa

from flywheel_common.errors import NotFound
from flywheel_feature.definitions.model import TableFormat
from flywheel_feature.store.s3 import snapshots
from flywheel_feature.store.s3.arrow_frames import to_frame
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_feature.tables.addresses import hive_columns
from flywheel_feature.tables.ports import Between, Piece, TableFile


class S3TableFiles(S3Tables):
    """Reads files in batches. The stamp of a file is its size and modification time."""

    def files(self, uri: str, table_format: TableFormat = TableFormat.PARQUET) -> list[TableFile]:
        path = self._path(uri)
        if table_format == TableFormat.DELTA:
            # The files of a Delta table never change.
            files = self.snapshot(uri, table_format).files
            return [TableFile(file.uri, "delta", file.partition) for file in files]

        def found() -> list[TableFile]:
            return [
                TableFile(f"s3://{i.path}", f"{i.size}-{i.mtime_ns}", hive_columns(i.path[len(path) :]))
                for i in self._files(path)
            ]

        return self._guard(uri, found)

    def older_than(self, uri: str, seconds: float) -> list[str]:
        """The files below a prefix that were written more than `seconds` ago; the prefix may have none."""
        limit = time.time_ns() - int(seconds * 1e9)

        def found() -> list[str]:
            return [f"s3://{i.path}" for i in self._files(self._path(uri)) if i.mtime_ns < limit]

        try:
            return self._guard(uri, found)
        except NotFound:
            return []

    def batches(
        self, file: TableFile, columns: Sequence[str], where: Between | None, rows: int, skip: int
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        def opened() -> Iterator[pa.RecordBatch]:
            fragment = snapshots.fragment(self._fs, self._path(file.uri), Piece(file.uri))
            # Without read-ahead at most one row group of the wanted columns is in memory.
            scanner = snapshots.scanner(
                fragment,
                columns,
                where,
                batch_size=rows,
                batch_readahead=1,
                fragment_readahead=1,
                use_threads=False,
            )
            return iter(scanner.to_batches())

        source = self._guard(file.uri, opened)
        number = 0
        while (batch := self._guard(file.uri, lambda: next(source, None))) is not None:
            number += 1
            if number > skip and batch.num_rows:
                yield number, self._guard(file.uri, partial(to_frame, pa.Table.from_batches([batch])))
