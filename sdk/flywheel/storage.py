"""The S3 that tables and training sets lie on."""

from __future__ import annotations

import os

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs


def storage() -> fs.S3FileSystem:
    """A file system of FLYWHEEL_S3_ENDPOINT, FLYWHEEL_S3_ACCESS_KEY and FLYWHEEL_S3_SECRET_KEY; its paths begin with the bucket. Without
    them AWS's own variables and files decide."""
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
    """The Parquet at `s3://bucket/key`, or below a prefix ending in `/`, as that of a training set is."""
    return pq.read_table(uri.removeprefix("s3://"), filesystem=storage())


def write_table(uri: str, table: pa.Table) -> None:
    """One Parquet file at `s3://bucket/key`; replaces what was there."""
    pq.write_table(table, uri.removeprefix("s3://"), filesystem=storage())
