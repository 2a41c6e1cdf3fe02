"""The files of tables on S3, read in batches (port: tables.ports.TableFiles)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from flywheel_common.errors import DataLoss, FlywheelError, NotFound
from flywheel_feature.definitions.model import TableFormat
from flywheel_feature.store.s3.tables import READERS, S3Tables, arrow_filter, to_frame
from flywheel_feature.tables.ports import Between, TableFile


class S3TableFiles(S3Tables):
    """Reads files in batches. The stamp of a file is its size and modification time."""

    def files(self, uri: str, table_format: TableFormat = TableFormat.PARQUET) -> list[TableFile]:
        path = self._path(uri)
        if table_format == TableFormat.DELTA:
            # The files of a Delta table never change.
            return [TableFile(file.uri, uri, "delta") for file in self.snapshot(uri, table_format).files]

        def found() -> list[TableFile]:
            return [TableFile(f"s3://{i.path}", uri, f"{i.size}-{i.mtime_ns}") for i in self._files(path)]

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

    def row_counts(self, uris: Sequence[str]) -> list[int | FlywheelError]:
        def count(uri: str) -> int | FlywheelError:
            try:
                return self._guard(
                    uri, lambda: int(pq.read_metadata(self._path(uri), filesystem=self._fs).num_rows)
                )
            except DataLoss as error:
                return error

        with ThreadPoolExecutor(READERS) as readers:
            return list(readers.map(count, uris))

    def batches(
        self, file: TableFile, columns: Sequence[str], where: Between | None, rows: int, skip: int
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        def opened() -> Iterator[pa.RecordBatch]:
            dataset = self._dataset_of([self._path(file.uri)], self._path(file.table))
            schema = dataset.schema
            is_timestamp = (
                where is not None
                and where.column in schema.names
                and pa.types.is_timestamp(schema.field(where.column).type)
            )
            # Without read-ahead at most one row group of the wanted columns is in memory.
            scanner = dataset.scanner(
                columns=[c for c in columns if c in schema.names],
                filter=arrow_filter(schema, where if is_timestamp else None),
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
                yield number, to_frame(pa.Table.from_batches([batch]))
