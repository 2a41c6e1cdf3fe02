"""Access of a job to objects on S3; endpoint and credentials come from the usual AWS_* variables."""

from __future__ import annotations

import hashlib
import os
from urllib.parse import urlsplit

import polars as pl
import pyarrow.dataset
from pyarrow import fs

from flywheel_job.artifacts import artifact_key


def open_store() -> fs.S3FileSystem:
    """The store at AWS_ENDPOINT_URL (empty: AWS itself)."""
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
    with store.open_output_stream(path_of(uri)) as stream:
        stream.write(data)


def put_by_digest(store: fs.FileSystem, prefix: str, data: bytes) -> tuple[str, str]:
    """Write `data` under its SHA-256 and return (uri, hex digest).

    Writing the same bytes again changes nothing.
    """
    digest = hashlib.sha256(data).hexdigest()
    uri = artifact_key(digest, prefix.rstrip("/"))
    write(store, uri, data)
    return uri, digest


def read_table(store: fs.FileSystem, uri: str, columns: list[str] | None = None) -> pl.DataFrame:
    """All Parquet files under `uri` (a file or a prefix) as one frame; absent columns are left out."""
    dataset = pyarrow.dataset.dataset(path_of(uri).rstrip("/"), filesystem=store, format="parquet")
    wanted = None if columns is None else [c for c in dict.fromkeys(columns) if c in dataset.schema.names]
    frame = pl.from_arrow(dataset.to_table(columns=wanted))
    assert isinstance(frame, pl.DataFrame)
    return frame
