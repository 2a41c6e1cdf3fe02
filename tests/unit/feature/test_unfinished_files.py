"""Files of an attempt that does not end well."""

from __future__ import annotations

import asyncio
import threading

import pytest

from flywheel_common.errors import Unavailable
from flywheel_feature.offline.unfinished import finish_in_thread, remove_on_failure

URI = "s3://b/training-sets/p/t/0-1/"


class Files:
    """The part of Tables that is needed; the store may be away."""

    def __init__(self, away: bool = False) -> None:
        self.keys: set[str] = set()
        self._away = away

    def remove(self, uri: str, *, keep: str = "") -> None:
        if self._away:
            raise Unavailable("The object store does not answer.", reason="OBJECT_STORE_DOWN")
        self.keys = {k for k in self.keys if not k.startswith(uri) or (keep and k.startswith(keep))}


async def test_a_file_whose_writing_outlives_the_cancellation_is_removed_too() -> None:
    files = Files()
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def write() -> None:
        begun.set()
        go_on.wait(10)
        files.keys.add(f"{URI}part-0")
        ended.set()

    async def build() -> None:
        async with remove_on_failure(files, URI):  # type: ignore[arg-type]
            await finish_in_thread(write)

    building = asyncio.ensure_future(build())
    await asyncio.to_thread(begun.wait, 10)
    building.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not building.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert ended.is_set()
    assert set() == files.keys


async def test_a_failure_is_told_as_it_was_even_where_the_files_cannot_be_removed() -> None:
    for files, left in ((Files(), set()), (Files(away=True), {f"{URI}part-0"})):
        files.keys = {f"{URI}part-0"}
        with pytest.raises(ValueError, match="profile"):
            async with remove_on_failure(files, URI):  # type: ignore[arg-type]
                raise ValueError("profile")
        assert left == files.keys


async def test_what_ended_well_stays() -> None:
    files = Files()
    async with remove_on_failure(files, URI):  # type: ignore[arg-type]
        await finish_in_thread(lambda: files.keys.add(f"{URI}part-0"))
    assert {f"{URI}part-0"} == files.keys
