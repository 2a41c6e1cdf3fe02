"""Access of a job to objects on S3.

The attempt of a job asks the trainer for each request (`granted`). A job that is started by hand, without a
trainer, takes endpoint and credentials from the usual AWS_* variables.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pyarrow import fs

from flywheel_common.granted.filesystem import GrantedFiles
from flywheel_common.storage.whole_files import write_whole
from flywheel_job.artifacts import artifact_key
from flywheel_job.granted import TOKEN_VARIABLE, TRAINER_VARIABLE, granted_store

if TYPE_CHECKING:
    import polars as pl

STORE_FOLDER = "FLYWHEEL_JOB_STORE"
"""Variable with a folder whose subfolders are the buckets, for jobs without S3."""


def open_store() -> fs.FileSystem:
    """The store of the attempt, else the folder that FLYWHEEL_JOB_STORE names, else the store at
    AWS_ENDPOINT_URL (empty: AWS itself)."""
    if address := os.environ.get(TRAINER_VARIABLE):
        return granted_store(address, os.environ[TOKEN_VARIABLE])
    if folder := os.environ.get(STORE_FOLDER):
        return fs.SubTreeFileSystem(folder, fs.LocalFileSystem())
    endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL", ""))
    if not endpoint.netloc:
        return fs.S3FileSystem()
    return fs.S3FileSystem(
        endpoint_override=endpoint.netloc,
        scheme=endpoint.scheme,
        region=os.environ.get("AWS_REGION", "us-east-1"),
        connect_timeout=10,
        request_timeout=60,
    )


def path_of(uri: str) -> str:
    """`bucket/key` of `s3://bucket/key`."""
    parts = urlsplit(uri)
    if parts.scheme != "s3" or not parts.netloc:
        raise ValueError(f"{uri!r} is not an s3:// address")
    return parts.netloc + parts.path


def read(store: fs.FileSystem, uri: str) -> bytes:
    with store.open_input_file(path_of(uri)) as stream:
        return bytes(stream.read())


def write(store: fs.FileSystem, uri: str, data: bytes) -> None:
    create_folder(store, uri.rpartition("/")[0])
    write_whole(store, path_of(uri), data)


def has_folders(store: fs.FileSystem) -> bool:
    """Whether folders are more than the beginnings of names."""
    return not isinstance(store, fs.S3FileSystem) and granted_files(store) is None


def granted_files(store: fs.FileSystem) -> GrantedFiles | None:
    """What is behind the store of an attempt; None for other stores."""
    handler = store.handler if isinstance(store, fs.PyFileSystem) else None
    return handler if isinstance(handler, GrantedFiles) else None


def create_folder(store: fs.FileSystem, uri: str) -> None:
    """Create the folder in a file system; an object store has no folders."""
    if has_folders(store):
        store.create_dir(path_of(uri), recursive=True)


def files_under(store: fs.FileSystem, uri: str, suffix: str = "") -> list[str]:
    """Paths of the files at `uri`, a file or a prefix, in the order of their names."""
    path = path_of(uri).rstrip("/")
    if store.get_file_info(path).type == fs.FileType.File:
        return [path]
    found = store.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    return sorted(one.path for one in found if one.type == fs.FileType.File and one.path.endswith(suffix))


def delete(store: fs.FileSystem, uri: str) -> None:
    """Delete all files under a prefix; absent ones are ignored."""
    for path in files_under(store, uri):
        store.delete_file(path)
    if has_folders(store) and store.get_file_info(path_of(uri)).type == fs.FileType.Directory:
        store.delete_dir(path_of(uri))


def put_by_digest(store: fs.FileSystem, prefix: str, data: bytes) -> tuple[str, str]:
    """Write `data` under its SHA-256 and return (uri, hex digest).

    Writing the same bytes again changes nothing.
    """
    digest = hashlib.sha256(data).hexdigest()
    uri = artifact_key(digest, prefix.rstrip("/"))
    if (files := granted_files(store)) is not None:
        files.put(path_of(uri), data, sha256=digest)
    else:
        write(store, uri, data)
    return uri, digest


def read_table(store: fs.FileSystem, uri: str, columns: list[str] | None = None) -> pl.DataFrame:
    """All Parquet files under `uri` (a file or a prefix) as one frame; absent columns are left out."""
    # Imported here: they take longer than the start of a process that reads no table, like the launcher.
    import polars as pl
    import pyarrow.dataset

    dataset = pyarrow.dataset.dataset(path_of(uri).rstrip("/"), filesystem=store, format="parquet")
    wanted = None if columns is None else [c for c in dict.fromkeys(columns) if c in dataset.schema.names]
    frame = pl.from_arrow(dataset.to_table(columns=wanted))
    assert isinstance(frame, pl.DataFrame)
    return frame
