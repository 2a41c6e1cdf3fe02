"""The working files of a join on a cluster, which its processes read again and again."""

from __future__ import annotations

from typing import Any

import pytest
from pyarrow import fs

from flywheel_common.granted.requests import Answer
from flywheel_feature.store.s3 import granted
from flywheel_feature.store.s3.granted import WorkingFiles


class Objects:
    """Signed requests to objects in memory, and the names of those that were asked for."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self.contents = contents
        self.asked: list[str] = []

    def send(self, request: Any, body: Any = None, headers: Any = None) -> Answer:
        name = request.uri.rpartition("/")[2]
        self.asked.append(name)
        content = self.contents[name]
        return Answer({"Content-Range": f"bytes 0-{len(content) - 1}/{len(content)}"}, content)


def opened(objects: Objects) -> fs.PyFileSystem:
    return fs.PyFileSystem(WorkingFiles(objects))  # type: ignore[arg-type]


def read(files: fs.PyFileSystem, name: str) -> bytes:
    with files.open_input_file(f"local/joins/j/{name}") as file:
        return bytes(file.read())


def test_a_file_of_rows_is_requested_once() -> None:
    objects = Objects({"a.parquet": b"rows of a", "b.parquet": b"rows of b"})
    files = opened(objects)
    for _ in range(3):
        assert (b"rows of a", b"rows of b") == (read(files, "a.parquet"), read(files, "b.parquet"))
    assert ["a.parquet", "b.parquet"] == objects.asked


def test_readers_of_one_file_have_places_of_their_own() -> None:
    files = opened(Objects({"a.parquet": b"0123456789"}))
    first = files.open_input_file("local/joins/j/a.parquet")
    second = files.open_input_file("local/joins/j/a.parquet")
    assert (b"012", b"01") == (first.read(3), second.read(2))
    assert (b"345", b"234") == (first.read(3), second.read(3))


def test_a_file_that_changes_is_requested_again() -> None:
    objects = Objects({"progress.json": b"1"})
    files = opened(objects)
    assert b"1" == read(files, "progress.json")
    objects.contents["progress.json"] = b"2"
    assert b"2" == read(files, "progress.json")


def test_the_files_that_were_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(granted, "KEPT_BYTES", 25)
    objects = Objects(dict.fromkeys(("a.parquet", "b.parquet", "c.parquet"), b"0123456789"))
    files = opened(objects)
    for name in ("a.parquet", "b.parquet", "a.parquet", "c.parquet"):
        read(files, name)
    objects.asked.clear()
    read(files, "a.parquet")
    read(files, "c.parquet")
    assert [] == objects.asked
    read(files, "b.parquet")
    assert ["b.parquet"] == objects.asked
