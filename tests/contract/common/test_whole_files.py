"""Contract tests for files that are written as a whole with pyarrow: on a disk and on S3."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

import flywheel as fw
from flywheel_common.storage.whole_files import parquet_bytes, write_whole
from flywheel_local.s3 import S3

TABLE = pa.table({"n": [1, 2, 3]})
UNWRITABLE = pa.table({"n": pa.array([(1, 2, 3)], pa.month_day_nano_interval())})
"""Parquet has no such type; its writer notices that after it has opened the file."""


@pytest.fixture(params=["disk", "s3"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> fs.FileSystem:
    """A folder or a bucket."""
    if request.param == "disk":
        return fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    s3: S3 = request.getfixturevalue("s3")
    store = fs.S3FileSystem(
        access_key=s3.access_key,
        secret_key=s3.secret_key,
        endpoint_override=s3.endpoint,
        region="us-east-1",
    )
    return fs.SubTreeFileSystem(request.getfixturevalue("bucket"), store)


def content(files: fs.FileSystem) -> dict[str, bytes]:
    """Name → bytes of all files."""
    found = {}
    for info in files.get_file_info(fs.FileSelector("", recursive=True)):
        with files.open_input_file(info.path) as stream:
            found[info.path] = stream.read()
    return found


def test_a_file_appears_as_it_was_given_and_is_replaced(files: fs.FileSystem) -> None:
    for data in (b"first", b"", b"x" * (12 << 20)):
        write_whole(files, "a.gz", data)
        assert {"a.gz": data} == content(files)


def test_a_table_is_encoded_with_the_options(files: fs.FileSystem) -> None:
    write_whole(files, "t.parquet", parquet_bytes(TABLE, row_group_size=2))
    with files.open_input_file("t.parquet") as stream:
        found = pq.ParquetFile(stream)
        assert (2, TABLE) == (found.num_row_groups, found.read())


def test_a_table_that_cannot_be_encoded_replaces_nothing(files: fs.FileSystem) -> None:
    write_whole(files, "t.parquet", b"former")
    with pytest.raises(pa.ArrowNotImplementedError):
        write_whole(files, "t.parquet", parquet_bytes(UNWRITABLE))
    assert {"t.parquet": b"former"} == content(files)


def test_a_table_of_the_sdk_replaces_a_file_completely_or_not_at_all(
    s3: S3, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("ENDPOINT", s3.endpoint),
        ("ACCESS_KEY", s3.access_key),
        ("SECRET_KEY", s3.secret_key),
    ):
        monkeypatch.setenv(f"FLYWHEEL_S3_{name}", value)
    uri = f"s3://{bucket}/t.parquet"
    fw.write_table(uri, TABLE)
    with pytest.raises(pa.ArrowNotImplementedError):
        fw.write_table(uri, UNWRITABLE)
    assert TABLE == fw.read_table(uri)
