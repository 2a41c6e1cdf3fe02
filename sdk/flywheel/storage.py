"""Tables and training sets on S3."""

from __future__ import annotations

import os

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from flywheel_common.storage.whole_files import parquet_bytes, write_whole


def storage() -> fs.S3FileSystem:
    """The S3 file system of FLYWHEEL_S3_ENDPOINT, FLYWHEEL_S3_ACCESS_KEY and FLYWHEEL_S3_SECRET_KEY, or else
    of the AWS environment variables and files. Paths begin with the bucket."""
    given = {k: os.environ.get(f"FLYWHEEL_S3_{k}", "") for k in ("ENDPOINT", "ACCESS_KEY", "SECRET_KEY")}
    if not given["ENDPOINT"]:
        return fs.S3FileSystem()
    return fs.S3FileSystem(
        endpoint_override=given["ENDPOINT"],
        access_key=given["ACCESS_KEY"] or None,
        secret_key=given["SECRET_KEY"] or None,
        region=os.environ.get("FLYWHEEL_S3_REGION", "us-east-1"),
    )


def read_table(uri: str) -> pa.Table:
    """Reads the Parquet file at `s3://bucket/key`, or a training set at a prefix ending in `/`.

    The rows of a training set have the order of its spine; all columns are read, the extra ones included.
    """
    return pq.read_table(uri.removeprefix("s3://"), filesystem=storage())


def write_table(uri: str, table: pa.Table) -> None:
    """Writes one Parquet file to `s3://bucket/key`; replaces an existing one."""
    write_whole(storage(), uri.removeprefix("s3://"), parquet_bytes(table))
