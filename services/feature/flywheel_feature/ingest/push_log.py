"""The push log: rows pushed to a batch view as Parquet on S3, read offline and by materialization after the source's own files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import polars as pl

from flywheel_feature.definitions.model import Source, View
from flywheel_feature.encoding.frames import Columns, to_frame
from flywheel_feature.tables.blocking import answered_in_time
from flywheel_feature.tables.ports import TableFile


class PushedSegments(Protocol):
    async def add(self, project: str, view: str, key: str, rows: int) -> None:
        """From now on the file is part of the log, after all others."""
        ...

    async def keys(self, project: str, view: str) -> list[tuple[int, str]]:
        """(number, object key) in order."""
        ...


class FrameWriter(Protocol):
    def bucket_uri(self, key: str) -> str: ...

    def write(self, uri: str, frame: pl.DataFrame) -> None: ...


class PushLog:
    """A row is durable once `append` returned: its file is whole on S3 and PostgreSQL knows it."""

    def __init__(self, segments: PushedSegments, writer: FrameWriter, new_id: Callable[[], str]) -> None:
        self._segments = segments
        self._writer = writer
        self._new_id = new_id

    async def append(self, view: View, source: Source, columns: Columns, rows: int) -> None:
        key = f"pushes/{view.project}/{view.id}/{self._new_id()}.parquet"
        frame = to_frame(list(source.schema), columns, rows)
        await answered_in_time(partial(self._writer.write, self._writer.bucket_uri(key), frame))
        await self._segments.add(view.project, view.id, key, rows)

    async def pushed(self, project: str, view: str) -> list[TableFile]:
        """In the order in which they were acknowledged; a file is never changed, an erasure puts another in its place."""
        files = []
        for number, key in await self._segments.keys(project, view):
            uri = self._writer.bucket_uri(key)
            files.append(TableFile(uri, uri, str(number), pushed=True))
        return files

    async def pushed_uris(self, project: str, view: str) -> list[str]:
        return [f.uri for f in await self.pushed(project, view)]
