"""Partitions of a table in Parquet files: consecutive row groups, which are scored as one unit of work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from flywheel_job import objects


@dataclass(frozen=True)
class Partition:
    """Row groups `first` to `last - 1` of one file, in which there are `rows` rows."""

    number: int
    path: str
    first: int
    last: int
    rows: int

    @property
    def name(self) -> str:
        """The name of its predictions' file."""
        return f"part-{self.number:06}.parquet"


def partitions_of(store: fs.FileSystem, uri: str, most_rows: int) -> list[Partition]:
    """The partitions of the files at `uri`, in the order of the rows; a partition has more than `most_rows`
    rows only if a row group has. Files that do not change always have the same partitions."""
    found: list[Partition] = []
    for path in objects.files_under(store, uri, ".parquet"):
        metadata = _open(store, path).metadata
        first, rows = 0, 0
        for group in range(metadata.num_row_groups):
            more = metadata.row_group(group).num_rows
            if rows and rows + more > most_rows:
                found.append(Partition(len(found), path, first, group, rows))
                first, rows = group, 0
            rows += more
        if rows:
            found.append(Partition(len(found), path, first, metadata.num_row_groups, rows))
    return found


def batches_of(
    store: fs.FileSystem, partition: Partition, columns: Sequence[str], rows: int, *, threads: int = 1
) -> Iterator[pa.RecordBatch]:
    """The rows of a partition, `rows` at a time; only the pages of these rows are decoded in memory.

    With one thread the caller's decodes them; otherwise pyarrow's threads do, one for each processor of the
    machine.
    """
    file = _open(store, partition.path)
    groups = list(range(partition.first, partition.last))
    yield from file.iter_batches(rows, row_groups=groups, columns=list(columns), use_threads=threads > 1)


def schema_of(store: fs.FileSystem, partition: Partition) -> pa.Schema:
    """The columns of a partition's file."""
    return _open(store, partition.path).schema_arrow


def _open(store: fs.FileSystem, path: str) -> pq.ParquetFile:
    return pq.ParquetFile(store.open_input_file(path), pre_buffer=False, buffer_size=1 << 20)
