"""Files that appear completely or not at all, on the file systems of pyarrow.

A stream makes its file appear when it is closed, and that happens after an exception, too: `with` closes it,
Parquet's writer first adds a footer, and a stream of S3FileSystem closes itself when it is dropped. A part of
the rows would be a valid file.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
from pyarrow import fs


@contextmanager
def whole_file(files: fs.FileSystem, path: str) -> Iterator[pa.NativeFile]:
    """A stream whose file appears when the block ends. If the block raises, a file at `path` stays as it was.

    The exception is S3FileSystem, whose streams cannot be given up: what a block has written before it raises
    appears there.
    """
    if not _on_disk(files):
        # By default pyarrow compresses what is written to a name that ends with .gz.
        stream = files.open_output_stream(path, compression=None)
        yield stream
        stream.close()
        return
    unfinished = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with files.open_output_stream(unfinished, compression=None) as stream:
            yield stream
        files.move(unfinished, path)
    except BaseException:
        with suppress(OSError):
            files.delete_file(unfinished)
        raise


def write_whole(files: fs.FileSystem, path: str, content: Any) -> None:
    """Write bytes in one step, so that they appear as a whole on S3FileSystem, too."""
    with whole_file(files, path) as stream:
        stream.write(content)


def parquet_bytes(table: pa.Table, **options: Any) -> pa.Buffer:
    """The content of a Parquet file, for `write_whole`; the options are those of `write_table`."""
    # Imported here: the launcher of a job writes logs only, and starts sooner without it.
    import pyarrow.parquet as pq

    content = pa.BufferOutputStream()
    pq.write_table(table, content, **options)
    return content.getvalue()


def _on_disk(files: fs.FileSystem) -> bool:
    while isinstance(files, fs.SubTreeFileSystem):
        files = files.base_fs
    return isinstance(files, fs.LocalFileSystem)
