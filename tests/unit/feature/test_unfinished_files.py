"""Files of an attempt that fails are removed."""

from __future__ import annotations

import asyncio
import threading

import pytest

from flywheel_feature.offline.unfinished import finish_in_thread, remove_on_failure
from flywheel_feature.tables.errors import ObjectStoreDown

URI = "s3://b/training-sets/p/t/0-1/"


class Files:
    """The part of Tables that is needed; the store may be down."""

    def __init__(self, down: bool = False) -> None:
        self.keys: set[str] = set()
        self._down = down

    def remove(self, uri: str, *, keep: str = "") -> None:
        if self._down:
            raise ObjectStoreDown("The object store does not answer.")
        self.keys = {k for k in self.keys if not k.startswith(uri) or (keep and k.startswith(keep))}


async def test_a_file_written_after_the_cancellation_is_removed() -> None:
    files = Files()
    begun, proceed, ended = threading.Event(), threading.Event(), threading.Event()

    def write() -> None:
        begun.set()
        proceed.wait(10)
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
    proceed.set()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert ended.is_set()
    assert set() == files.keys


async def test_the_original_error_is_raised_if_removal_fails() -> None:
    for files, left in ((Files(), set()), (Files(down=True), {f"{URI}part-0"})):
        files.keys = {f"{URI}part-0"}
        with pytest.raises(ValueError, match="profile"):
            async with remove_on_failure(files, URI):  # type: ignore[arg-type]
                raise ValueError("profile")
        assert left == files.keys


async def test_files_of_a_successful_attempt_are_kept() -> None:
    files = Files()
    async with remove_on_failure(files, URI):  # type: ignore[arg-type]
        await finish_in_thread(lambda: files.keys.add(f"{URI}part-0"))
    assert {f"{URI}part-0"} == files.keys
