"""Ports that several modules of this package use."""

from __future__ import annotations

from typing import Protocol


class Materialized(Protocol):
    """How far the batch views of a project are materialized. Raises Unavailable."""

    async def done(self, project: str, view: str, version: int, end_time: int, newest: int) -> None:
        """Record the newest event time that is online (microseconds); an older one changes nothing."""
        ...

    async def newest(self, project: str) -> dict[tuple[str, int], int]:
        """(view id, version) → newest event time online."""
        ...
