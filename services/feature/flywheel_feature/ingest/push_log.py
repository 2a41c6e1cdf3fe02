"""The push log: rows pushed to a batch view, as Parquet on S3.

Offline joins and materializations read them after the files of the view's source.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from flywheel_feature.definitions.model import Source, View
from flywheel_feature.encoding.frames import Columns, to_frame
from flywheel_feature.tables.blocking import answered_in_time
from flywheel_feature.tables.ports import FrameWriter, TableFile


class PushedSegments(Protocol):
    """The files of every push log. Raises Unavailable."""

    async def add(self, project: str, view: str, key: str, rows: int) -> None:
        """Append a file to the log of a view."""
        ...

    async def keys(self, project: str, view: str) -> list[tuple[int, str]]:
        """(number, object key) of the files, in order."""
        ...

    async def replace(self, old: str, new: str, rows: int) -> None:
        """Put the object `new` (a key) in the place of `old`, under its number; without rows, put nothing.

        `old` becomes garbage. Repeating the call changes nothing.
        """
        ...


class PushLog:
    """Appends pushed rows; when `append` returns, the file is on S3 and PostgreSQL lists it."""

    def __init__(self, segments: PushedSegments, writer: FrameWriter, new_id: Callable[[], str]) -> None:
        self._segments = segments
        self._writer = writer
        self._new_id = new_id

    async def append(self, view: View, source: Source, columns: Columns, rows: int) -> str:
        key = f"pushes/{view.project}/{view.id}/{self._new_id()}.parquet"
        frame = to_frame(list(source.schema), columns, rows)
        uri = self._writer.bucket_uri(key)
        await answered_in_time(partial(self._writer.write, uri, frame))
        await self._segments.add(view.project, view.id, key, rows)
        return uri

    async def pushed(self, project: str, view: str) -> list[TableFile]:
        """The files in the order of their pushes; a file never changes, but an erasure may replace it."""
        files = []
        for number, key in await self._segments.keys(project, view):
            uri = self._writer.bucket_uri(key)
            files.append(TableFile(uri, str(number), pushed=True))
        return files

    async def pushed_uris(self, project: str, view: str) -> list[str]:
        return [f.uri for f in await self.pushed(project, view)]
