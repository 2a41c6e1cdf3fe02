"""Contract tests for the working files of joins: in memory, on a disk and on S3."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow.fs as fs
import pytest

from flywheel_common.errors import NotFound, Unavailable
from flywheel_feature.fakes.partitions import MemoryWorkspace
from flywheel_feature.offline.ports import Workspace
from flywheel_feature.store.s3.deletion import S3Deletion
from flywheel_feature.store.s3.workspaces import FileWorkspace
from flywheel_feature.tables.ports import Between
from flywheel_local.s3 import S3
from tests.support.ports import free_port


@pytest.fixture(params=["memory", "disk", "s3"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> Workspace:
    if request.param == "memory":
        return MemoryWorkspace()
    if request.param == "disk":
        return FileWorkspace(fs.LocalFileSystem(), str(tmp_path / "join"))
    s3: S3 = request.getfixturevalue("s3")
    return on_s3(s3.endpoint, s3.access_key, s3.secret_key, request.getfixturevalue("bucket") + "/join")


def on_s3(endpoint: str, access_key: str, secret_key: str, root: str) -> FileWorkspace:
    files = fs.S3FileSystem(
        access_key=access_key,
        secret_key=secret_key,
        endpoint_override=endpoint.rpartition("://")[2],
        scheme="http",
        region="us-east-1",
        connect_timeout=1.0,
        request_timeout=5.0,
    )
    return FileWorkspace(files, root, S3Deletion(endpoint, access_key, secret_key))


def rows(first: int, count: int) -> pl.DataFrame:
    return pl.DataFrame({"n": pl.int_range(first, first + count, eager=True)})


def test_files_are_read_by_key_in_file_order(workspace: Workspace) -> None:
    assert [] == workspace.keys()
    workspace.write("p/1.parquet", rows(4, 2), [2])
    workspace.write("p/0.parquet", rows(0, 4), [3, 1])
    workspace.write("q/0.parquet", rows(90, 1), [1])
    assert ["p/0.parquet", "p/1.parquet"] == workspace.keys("p/")
    assert list(range(6)) == workspace.read("p/", ["n"])["n"].to_list()
    assert [3, 4] == workspace.read("p/", ["n"], Between("n", 3, 5))["n"].to_list()
    workspace.write("p/1.parquet", rows(7, 1), [1])
    assert [0, 1, 2, 3, 7] == workspace.read("p/", ["n"])["n"].to_list()
    with pytest.raises(NotFound):
        workspace.read("none/", ["n"])


def test_json_and_bytes_read_back_and_missing_files_are_none(workspace: Workspace) -> None:
    assert workspace.read_json("spec") is None
    assert workspace.read_bytes("result") is None
    workspace.write_json("spec", {"rows": [1, 2], "name": "ünïcode"})
    workspace.write_bytes("result", b"\0\xff")
    workspace.write_bytes("result", b"later")
    assert {"rows": [1, 2], "name": "ünïcode"} == workspace.read_json("spec")
    assert b"later" == workspace.read_bytes("result")
    assert ["result", "spec"] == workspace.keys()


def test_a_file_whose_writing_is_interrupted_does_not_appear(workspace: Workspace) -> None:
    """Ray ends a worker by SystemExit, at any place; Parquet's writer then adds a footer."""

    class Interrupted(list[int]):
        def __iter__(self) -> Iterator[int]:
            yield 2
            raise SystemExit

    workspace.write("p/0.parquet", rows(0, 4), [4])
    for key in ("p/0.parquet", "p/1.parquet"):
        with pytest.raises(SystemExit):
            workspace.write(key, rows(9, 4), Interrupted())
    gc.collect()
    assert ["p/0.parquet"] == workspace.keys("p/")
    assert list(range(4)) == workspace.read("p/", ["n"])["n"].to_list()


def test_delete_removes_all_files_and_is_idempotent(workspace: Workspace) -> None:
    workspace.write_bytes("a/b/c", b"x")
    workspace.write_bytes("d", b"y")
    workspace.delete()
    workspace.delete()
    assert [] == workspace.keys()


async def test_concurrent_writes_of_one_key_leave_one_complete_file(workspace: Workspace) -> None:
    contents = [bytes([i]) * 200_000 for i in range(4)]
    await asyncio.gather(*(asyncio.to_thread(workspace.write_bytes, "one", c) for c in contents))
    assert workspace.read_bytes("one") in contents
    assert ["one"] == workspace.keys()


def test_unreachable_store_is_unavailable() -> None:
    workspace = on_s3(f"http://127.0.0.1:{free_port()}", "a", "b", "bucket/join")
    with pytest.raises(Unavailable) as refused:
        workspace.read_bytes("x")
    assert "OBJECT_STORE_DOWN" == refused.value.reason
