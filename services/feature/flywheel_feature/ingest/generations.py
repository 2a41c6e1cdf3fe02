"""Noticing that Redis lost its data: everything in it belongs to a generation, PostgreSQL knows which one it is.

A Redis that was emptied, restarted without its file or replaced lacks the markers of the generation (one per part of a
cluster). Whoever sees that begins the next one; tiles and positions of an older generation count as absent everywhere, so that
nothing half lost is taken for whole.
"""

from __future__ import annotations

from typing import Protocol

from flywheel_common.telemetry.logs import get_logger

log = get_logger(__name__)


class Markers(Protocol):
    async def generation(self) -> int | None:
        """The marked generation; None when a marker is missing or they differ."""
        ...

    async def mark_generation(self, generation: int) -> None:
        """Mark every part, unless a newer generation is marked there."""
        ...


class GenerationCounter(Protocol):
    async def generation(self) -> int:
        """0 before the first one began."""
        ...

    async def next_generation(self, after: int) -> int:
        """The counter, one higher if it still was `after`. Of racing callers one raises it."""
        ...


class Generations:
    def __init__(self, markers: Markers, counter: GenerationCounter) -> None:
        self._markers = markers
        self._counter = counter

    async def current(self) -> int:
        """The generation to work in; a new one when Redis lost data. Raises Unavailable."""
        marked, known = await self._markers.generation(), await self._counter.generation()
        if marked is not None and marked == known:
            return known
        log.warning("the online store lost data: tiles are filled again", marked=marked, known=known)
        return await self.begin(known)

    async def begin(self, after: int) -> int:
        """Begin the generation after `after`, or join the one that another member began."""
        following = await self._counter.next_generation(after)
        await self._markers.mark_generation(following)
        return following

    async def known(self) -> int:
        return await self._counter.generation()

    async def holds(self, generation: int) -> bool:
        """Whether a member that works in `generation` may go on."""
        return await self._markers.generation() == generation
