"""An archive of stream sources in memory: tests register its segments and offsets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flywheel_feature.tables.ports import Segment


class MemoryArchive:
    """Segments and offsets as registered (port: tables.ports.Archive)."""

    def __init__(self) -> None:
        self._segments: dict[tuple[str, str], list[Segment]] = {}
        self._archived: dict[tuple[str, str], dict[int, int]] = {}
        self._ends: dict[tuple[str, str], dict[int, int]] = {}
        self._pushed: dict[tuple[str, str], list[str]] = {}

    def add(self, project: str, source: str, segment: Segment, offsets: Mapping[int, int]) -> None:
        """Register a committed segment; `offsets` has the next offset of each partition it reaches."""
        self._segments.setdefault((project, source), []).append(segment)
        self._archived.setdefault((project, source), {}).update(offsets)

    def topic_ends(self, project: str, source: str, offsets: Mapping[int, int]) -> None:
        self._ends[(project, source)] = dict(offsets)

    def push(self, project: str, view: str, uri: str) -> None:
        """Register a file of rows pushed to a batch view."""
        self._pushed.setdefault((project, view), []).append(uri)

    async def segments(self, project: str, source: str) -> Sequence[Segment]:
        return tuple(self._segments.get((project, source), ()))

    async def archived_offsets(self, project: str, source: str) -> Mapping[int, int]:
        return dict(self._archived.get((project, source), {}))

    async def end_offsets(self, project: str, source: str) -> Mapping[int, int]:
        known = self._ends.get((project, source))
        return dict(known if known is not None else self._archived.get((project, source), {}))

    async def pushed_uris(self, project: str, view: str) -> Sequence[str]:
        return tuple(self._pushed.get((project, view), ()))
