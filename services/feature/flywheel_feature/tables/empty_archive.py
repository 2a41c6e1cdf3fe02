"""An archive without events, for readers of files that are known already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flywheel_feature.tables.ports import Segment


class EmptyArchive:
    """Has no segment, no offset and no pushed file (port: tables.ports.Archive)."""

    async def segments(self, project: str, source: str) -> Sequence[Segment]:
        return ()

    async def archived_offsets(self, project: str, source: str) -> Mapping[int, int]:
        return {}

    async def end_offsets(self, project: str, source: str) -> Mapping[int, int]:
        return {}

    async def pushed_uris(self, project: str, view: str) -> Sequence[str]:
        return ()
