"""Removing the rows of an entity from Parquet files."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import polars as pl

from flywheel_common.errors import NotFound
from flywheel_feature.erasure.model import ErasedEntity, EraseReport
from flywheel_feature.erasure.ports import Objects


def object_key(uri: str) -> str:
    """The object key of an address `s3://bucket/key`."""
    return uri.removeprefix("s3://").partition("/")[2]


class FileErasure:
    """Reads and rewrites files; `delete` removes an object by its key."""

    def __init__(
        self, objects: Objects, new_id: Callable[[], str], delete: Callable[[str], Awaitable[None]]
    ) -> None:
        self._objects = objects
        self._new_id = new_id
        self._delete = delete

    async def without(
        self, uri: str, erased: ErasedEntity, offset: str = "", barrier: int = 0
    ) -> tuple[pl.DataFrame, int] | None:
        """The file without the entity's rows, and their number; None when it has none.

        With `offset`, the name of a column, only rows with an offset below `barrier` are removed.
        """
        return await asyncio.to_thread(self._without, uri, erased, offset, barrier)

    async def write_beside(self, old: str, frame: pl.DataFrame) -> str:
        """Write a frame as a new object in the folder of `old`; returns its key, empty for no rows."""
        if not frame.height:
            return ""
        key = f"{old.rpartition('/')[0]}/{self._new_id()}.parquet"
        await asyncio.to_thread(self._objects.write, self._objects.bucket_uri(key), frame)
        return key

    async def erase_in_place(
        self, folder: str, erased: ErasedEntity, report: EraseReport, *, prefix: str = ""
    ) -> int:
        """Rewrite the files below a key prefix under their names; returns the number of rows removed.

        `prefix` precedes the names of the join keys in the files.
        """
        try:
            files = await asyncio.to_thread(self._objects.files, self._objects.bucket_uri(folder))
        except NotFound:
            return 0
        total = 0
        for file in files:
            kept = await asyncio.to_thread(self._without, file.uri, erased, prefix=prefix)
            if kept is None:
                continue
            frame, removed = kept
            if frame.height:
                await asyncio.to_thread(self._objects.write, file.uri, frame)
            else:
                await self._delete(object_key(file.uri))
            total += removed
            report.objects += 1
        return total

    async def count(self, uri: str, erased: ErasedEntity) -> int:
        """The number of the entity's rows in the files at an address; 0 when there is no file."""
        return await asyncio.to_thread(self._count, uri, erased)

    def _without(
        self, uri: str, erased: ErasedEntity, offset: str = "", barrier: int = 0, *, prefix: str = ""
    ) -> tuple[pl.DataFrame, int] | None:
        stored = self._objects.schema(uri)
        names = [prefix + key for key in erased.keys]
        if not set(names) <= set(stored):
            return None
        keys = self._objects.read(uri, [*names, *([offset] if offset else [])])
        rows = erased.rows(keys.rename({prefix + key: key for key in erased.keys}))
        if offset:
            offsets = keys.get_column(offset)
            rows = [row for row in rows if offsets[row] < barrier]
        if not rows:
            return None
        frame = self._objects.read(uri, list(stored))
        dropped = pl.Series(rows, dtype=pl.UInt32)
        is_dropped = pl.int_range(pl.len(), dtype=pl.UInt32).is_in(dropped.implode())
        return frame.filter(~is_dropped), len(rows)

    def _count(self, uri: str, erased: ErasedEntity) -> int:
        try:
            if not set(erased.keys) <= set(self._objects.schema(uri)):
                return 0
            return len(erased.rows(self._objects.read(uri, erased.keys)))
        except NotFound:
            return 0
