"""The port of the online store for tiles, and the positions up to which views have applied their events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from flywheel_feature.definitions.model import VersionRef
from flywheel_feature.windows.tile_layout import TileLayout
from flywheel_feature.windows.tile_writing import Delta


class TileStore(Protocol):
    """States of entities, and the applied positions of views.

    Every write is atomic per key and may be repeated. Raises Unavailable.
    """

    async def merge_tiles(
        self,
        layout: TileLayout,
        deltas: Sequence[tuple[bytes, Delta, int, int]],
        partition: int,
        lifetime_ms: int,
        generation: int,
    ) -> list[int]:
        """Merge deltas (key, delta, first offset, next offset) of one partition; events count once per key.

        Returns per delta the offset up to which the key has applied the partition. It is less than the
        delta's next offset when the key had applied a part of its events: then nothing was merged, and the
        events not applied yet begin there. A state of an older generation counts as absent; for a state of a
        newer generation the result is -1.
        """
        ...

    async def positions(self, project: str, source: str) -> dict[str, str]:
        """The applied positions of a source: `position_field` → text of a Position."""
        ...

    async def take_positions(self, project: str, source: str, generation: int) -> dict[str, str]:
        """The applied positions in a generation; positions of an older generation are deleted first."""
        ...

    async def advance(
        self, project: str, source: str, moves: Mapping[str, tuple[str, str]], generation: int
    ) -> list[bool]:
        """Move each field from its expected value ("": none) to a new one.

        Returns False for a field that held another value, or whose source belongs to another generation.
        """
        ...


@dataclass(frozen=True, slots=True)
class Position:
    """How far a view has applied a partition."""

    next_offset: int
    watermark: int = 0
    """Newest event time that was applied, microseconds; 0: none."""

    @classmethod
    def parse(cls, text: str) -> Position:
        offset, _, watermark = text.partition(":")
        return cls(int(offset), int(watermark or 0))

    def __str__(self) -> str:
        return f"{self.next_offset}:{self.watermark}"


def position_field(ref: VersionRef, partition: int) -> str:
    """The field of a view's position in a partition: `traffic@3/0`."""
    return f"{ref.id}@{ref.version}/{partition}"


class PositionLost(Exception):
    """The stored position is not the one that this process stored: another process has moved it."""
