"""Generations of the contents of Redis: they show that Redis lost data.

Everything in Redis belongs to a generation, whose number is in PostgreSQL. A Redis that was emptied,
restarted without its file or replaced lacks the markers of the generation (one per part of a cluster). The
process that finds them missing begins the next generation. Tiles and positions of an older generation count
as absent, so that incomplete contents are never used.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from flywheel_common.telemetry.logs import get_logger

log = get_logger(__name__)


class GenerationMarkers(Protocol):
    """The markers in Redis. Raises Unavailable."""

    async def generation(self) -> int | None:
        """The marked generation; None when a marker is missing or markers differ."""
        ...

    async def mark_generation(self, generation: int) -> None:
        """Mark every part of the store, unless a newer generation is marked there."""
        ...


class GenerationCounter(Protocol):
    """The current generation in PostgreSQL. Raises Unavailable."""

    async def generation(self) -> int:
        """0 before the first generation."""
        ...

    async def next_generation(self, after: int) -> int:
        """The counter, raised by one if it was `after`. Of concurrent callers one raises it."""
        ...


class Generations:
    """Detects lost data and begins generations."""

    def __init__(self, markers: GenerationMarkers, counter: GenerationCounter) -> None:
        self._markers = markers
        self._counter = counter
        self._beginning = asyncio.Lock()

    async def current(self) -> int:
        """The generation to work in; a new one when Redis has lost data. Raises Unavailable.

        Of many calls at once, one begins the new generation. Another process may still begin one more, so
        that a caller must compare its generation with `marked` while it works.
        """
        marked, known = await self._read()
        if marked == known:
            return known
        async with self._beginning:
            marked, known = await self._read()
            if marked == known:
                return known
            log.warning(
                "the online store has lost data; its tiles will be filled again", marked=marked, known=known
            )
            return await self.begin(known)

    async def _read(self) -> tuple[int | None, int]:
        """The marked and the known generation."""
        # The counter first: a generation that begins between the two reads is joined.
        known = await self._counter.generation()
        return await self._markers.generation(), known

    async def begin(self, after: int) -> int:
        """Begin the generation after `after`, or take the one that another process began."""
        following = await self._counter.next_generation(after)
        await self._markers.mark_generation(following)
        return following

    async def known(self) -> int:
        """The generation in PostgreSQL, whatever Redis holds."""
        return await self._counter.generation()

    async def marked(self) -> int | None:
        """The generation in which work may continue; None when Redis has lost data. Raises Unavailable."""
        return await self._markers.generation()
