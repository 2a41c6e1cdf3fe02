"""The S3 that tables and training sets lie on."""

from __future__ import annotations

import os

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
