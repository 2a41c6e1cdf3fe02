"""torch's distributed checkpoints on a pyarrow file system, so that every rank writes to S3 itself."""

from __future__ import annotations

import io
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from pyarrow import fs
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystemBase

from flywheel_common.storage.whole_files import whole_file
from flywheel_job.objects import has_folders

StrPath = str | os.PathLike[str]


class ArrowFileSystem(FileSystemBase):
    """`FileSystemBase` of torch; paths are `bucket/key`."""

    def __init__(self, store: fs.FileSystem) -> None:
        self._store = store

    @contextmanager
    def create_stream(self, path: StrPath, mode: str) -> Generator[io.IOBase, None, None]:
        if "r" in mode:
            with self._store.open_input_file(str(path)) as stream:
                yield stream
        else:
            with whole_file(self._store, str(path)) as stream:
                yield stream

    def concat_path(self, path: StrPath, suffix: str) -> str:
        return f"{path}/{suffix}"

    def rename(self, path: StrPath, new_path: StrPath) -> None:
        self._store.move(str(path), str(new_path))

    def init_path(self, path: StrPath) -> str:
        return str(path)

    def mkdir(self, path: StrPath) -> None:
        if has_folders(self._store):
            self._store.create_dir(str(path), recursive=True)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: StrPath) -> bool:  # noqa: ARG003 - torch names it
        return True

    def exists(self, path: StrPath) -> bool:
        return self._store.get_file_info(str(path)).type is not fs.FileType.NotFound

    def rm_file(self, path: StrPath) -> None:
        self._store.delete_file(str(path))


def writer(store: fs.FileSystem, path: str) -> Any:
    """A DCP storage writer to `bucket/prefix`."""
    made = FileSystemWriter(path, sync_files=False)
    made.fs, made.path = ArrowFileSystem(store), path
    return made


def reader(store: fs.FileSystem, path: str) -> Any:
    """A DCP storage reader from `bucket/prefix`."""
    made = FileSystemReader(path)
    made.fs, made.path = ArrowFileSystem(store), path
    return made
