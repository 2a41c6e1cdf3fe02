"""How far batch views were materialized and from which files, in memory, for unit tests. Held to the same contract suite as PostgreSQL.

Ports: materialization.Materialized, pushing.Shown, freshness.Materialized, materialize_view.SeenFiles.
"""

from __future__ import annotations

from collections.abc import Mapping

ViewVersion = tuple[str, str, int]
"""Project, view id, version."""


class MemoryMaterialized:
    def __init__(self) -> None:
        self._newest: dict[ViewVersion, int] = {}
        self._seen: dict[ViewVersion, dict[str, str]] = {}

    async def newest(self, project: str) -> dict[tuple[str, int], int]:
        return {(view, version): t for (of, view, version), t in self._newest.items() if of == project}

    async def done(self, project: str, view: str, version: int, end_time: int, newest: int) -> None:
        key = project, view, version
        self._newest[key] = max(newest, self._newest.get(key, newest))

    async def seen(self, project: str, view: str, version: int) -> Mapping[str, str]:
        return dict(self._seen.get((project, view, version), {}))

    async def mark_seen(self, project: str, view: str, version: int, uri: str, stamp: str) -> None:
        self._seen.setdefault((project, view, version), {})[uri] = stamp

    async def forget_files(self, project: str, view: str, version: int) -> None:
        self._seen.pop((project, view, version), None)
