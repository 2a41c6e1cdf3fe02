"""Working files on a disk or on S3, through pyarrow (port: offline.ports.Workspace)."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as fs
import pyarrow.parquet as pq

from flywheel_common.errors import FlywheelError
from flywheel_common.storage.whole_files import whole_file, write_whole
from flywheel_feature.offline.errors import SpillFull
from flywheel_feature.offline.ports import Workspace
from flywheel_feature.store.s3.deletion import Deletion
from flywheel_feature.tables.errors import ObjectStoreDown, UnknownTable
from flywheel_feature.tables.ports import Between


class FileWorkspace(Workspace):
    """A folder on a disk, or in an object store when `deletion` is given."""

    def __init__(self, files: fs.FileSystem, root: str, deletion: Deletion | None = None) -> None:
        self._fs = files
        self._root = root.rstrip("/")
        self._deletion = deletion

    def keys(self, prefix: str = "") -> list[str]:
        # Only the folder of the prefix: a join of many tasks has many files.
        folder = f"{self._root}/{prefix}".rpartition("/")[0]
        try:
            infos = self._fs.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
        except OSError as error:
            raise _store_error(error) from error
        keys = (i.path[len(self._root) + 1 :] for i in infos if i.type == fs.FileType.File)
        return sorted(k for k in keys if k.startswith(prefix) and not k.endswith(".tmp"))

    def write(self, key: str, frame: pl.DataFrame, groups: Sequence[int]) -> None:
        table = frame.to_arrow()

        def write(stream: Any) -> None:
            with pq.ParquetWriter(stream, table.schema, compression="lz4") as writer:
                start = 0
                for rows in groups:
                    writer.write_table(table.slice(start, rows), row_group_size=rows)
                    start += rows

        self._put(key, write)

    def read(self, prefix: str, columns: Sequence[str], where: Between | None = None) -> pl.DataFrame:
        paths = [f"{self._root}/{k}" for k in self.keys(prefix) if k.endswith(".parquet")]
        if not paths:
            raise UnknownTable(f"There is no working file {prefix}.")
        try:
            dataset = ds.dataset(paths, filesystem=self._fs, format="parquet")
            table = dataset.to_table(columns=list(columns), filter=_filter(dataset.schema, where))
        except OSError as error:
            raise _store_error(error) from error
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        return frame

    def write_bytes(self, key: str, content: bytes) -> None:
        self._put(key, lambda stream: stream.write(content))

    def read_bytes(self, key: str) -> bytes | None:
        try:
            with self._fs.open_input_stream(f"{self._root}/{key}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _store_error(error) from error

    def delete(self) -> None:
        if self._deletion is not None:
            self._deletion.delete(f"{self._root}/{key}" for key in self.keys())
            return
        try:
            self._fs.delete_dir(self._root)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _store_error(error) from error

    def _put(self, key: str, write: Any) -> None:
        path = f"{self._root}/{key}"
        try:
            if self._deletion is not None:
                content = pa.BufferOutputStream()
                write(content)
                write_whole(self._fs, path, content.getvalue())
                return
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self._fs, path) as stream:
                write(stream)
        except OSError as error:
            raise _store_error(error) from error


def _filter(schema: pa.Schema, where: Between | None) -> ds.Expression | None:
    if where is None:
        return None
    column, kind = ds.field(where.column), schema.field(where.column).type
    low = None if where.low is None else column >= pa.scalar(where.low, pa.int64()).cast(kind)
    high = None if where.high is None else column < pa.scalar(where.high, pa.int64()).cast(kind)
    if low is None or high is None:
        return high if low is None else low
    return low & high


def _store_error(error: OSError) -> FlywheelError:
    if error.errno == errno.ENOSPC:
        return SpillFull("The disk for working files is full: give `spill_directory` more space.")
    return ObjectStoreDown("The store of working files does not answer: retry.")
