"""The predictions on the object store.

While a job runs, each partition is a file below `_temporary/`, and is finished when its marker exists: a
process with a key of S3, without a trainer, can leave a part of a file (`whole_file`). `commit` moves all of
them below the address of the predictions and then writes `_SUCCESS`. Without `_SUCCESS` there are no
predictions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from flywheel_common.storage.whole_files import whole_file
from flywheel_job import objects
from flywheel_job.batch_scoring.partitions import Partition

SUCCESS = "_SUCCESS"
TEMPORARY = "_temporary"
ROWS_PER_GROUP = 131_072


class Output:
    """The predictions of one job at `uri`, which ends with a slash."""

    def __init__(self, store: fs.FileSystem, uri: str) -> None:
        self._store, self._uri = store, uri

    def committed(self) -> Mapping[str, Any] | None:
        """The content of `_SUCCESS`; None if the predictions are not complete."""
        with suppress(FileNotFoundError, ValueError):
            content: Mapping[str, Any] = json.loads(objects.read(self._store, self._uri + SUCCESS))
            return content
        return None

    def finished(self) -> dict[int, Mapping[str, Any]]:
        """Number of each finished partition → its counts.

        A marker that was only partly written, which an object store never shows, is none.
        """
        found = {}
        for path in objects.files_under(self._store, f"{self._uri}{TEMPORARY}/", ".json"):
            with suppress(ValueError), self._store.open_input_file(path) as stream:
                counts = json.loads(stream.read())
                found[int(counts["partition"])] = counts
        return found

    def write(self, partition: Partition, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        """Write a partition batch by batch, then its marker."""
        uri = f"{self._uri}{TEMPORARY}/{partition.name}"
        objects.create_folder(self._store, uri.rpartition("/")[0])
        rows = failed = 0
        with (
            whole_file(self._store, objects.path_of(uri)) as stream,
            pq.ParquetWriter(stream, schema, compression="lz4", use_dictionary=_repeating(schema)) as writer,
        ):
            for group in _groups(batches, schema):
                rows += group.num_rows
                failed += group.num_rows - group.column(group.num_columns - 1).null_count
                writer.write_table(group)
        counts = {"partition": partition.number, "rows": rows, "failed": failed}
        objects.write(self._store, f"{uri}.json", json.dumps(counts).encode())

    def commit(self, partitions: Sequence[Partition], summary: Mapping[str, Any]) -> Mapping[str, Any]:
        """Move all partitions to their address, and mark the predictions as complete. Repeatable."""
        for partition in partitions:
            source = f"{self._uri}{TEMPORARY}/{partition.name}"
            self._store.copy_file(objects.path_of(source), objects.path_of(self._uri + partition.name))
        counts = self.finished().values()
        content = dict(summary) | {
            "files": [partition.name for partition in partitions],
            "rows": sum(one["rows"] for one in counts),
            "failed_rows": sum(one["failed"] for one in counts),
        }
        objects.write(self._store, self._uri + SUCCESS, json.dumps(content, sort_keys=True).encode())
        return content

    def remove_temporary(self) -> None:
        """Delete what partitions left, also those of an attempt that ended before it could."""
        with suppress(FileNotFoundError):
            self._store.delete_dir(objects.path_of(self._uri + TEMPORARY))

    def batches(self, file: str, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """The rows of a file of complete predictions."""
        source = self._store.open_input_file(objects.path_of(self._uri + file))
        yield from pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20).iter_batches(
            rows, columns=list(columns)
        )


def _repeating(schema: pa.Schema) -> list[str]:
    """The columns whose values repeat: dictionaries of numbers cost time and save no space."""
    repeating = (pa.types.is_string, pa.types.is_large_string, pa.types.is_timestamp)
    return [field.name for field in schema if any(repeats(field.type) for repeats in repeating)]


def _groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of at least ROWS_PER_GROUP rows or 64 MiB: small row groups are slow to read."""
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        waiting.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= ROWS_PER_GROUP or size >= 64 << 20:
            yield pa.Table.from_batches(waiting, schema)
            waiting, rows, size = [], 0, 0
    if waiting:
        yield pa.Table.from_batches(waiting, schema)
