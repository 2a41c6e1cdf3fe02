"""Which stream events an online answer is made of.

The state of an entity keeps per partition the offset below which all of its events are applied, and none other (aggregation.py).
Answered beside the values and kept by whoever logs them, these positions say from which events a value must be recomputed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flywheel_common.arrays import Ints
from flywheel_feature.definitions.model import VersionRef, View
from flywheel_feature.windows.tile_layout import GENERATION, TileLayout


@dataclass(frozen=True, slots=True)
class AppliedOffsets:
    """Positions of one stream view, n rows: row i owns pairs[bounds[i]:bounds[i + 1]], none when it has no event."""

    view: VersionRef
    bounds: Ints
    """[n + 1], rising from 0."""
    pairs: Ints
    """[m, 2]: partition and next offset."""

    def rows(self, low: int, high: int) -> AppliedOffsets:
        first, last = int(self.bounds[low]), int(self.bounds[high])
        return AppliedOffsets(self.view, self.bounds[low : high + 1] - first, self.pairs[first:last])


class StoredRead(Protocol):
    @property
    def view(self) -> View: ...

    @property
    def tiles(self) -> TileLayout | None: ...


def applied_name(view: VersionRef) -> str:
    """`traffic@3`: the column of a view's applied offsets in answers and logs."""
    return f"{view.id}@{view.version}"


def applied_offsets(
    reads: Iterable[StoredRead], blobs: Sequence[bytes | None], rows: int
) -> tuple[AppliedOffsets, ...]:
    """Those of every stream view; `blobs` holds `rows` states per read, read by read."""
    found = []
    for place, read in enumerate(reads):
        if read.tiles is not None:
            bounds, pairs = positions_of(blobs[place * rows : (place + 1) * rows])
            found.append(AppliedOffsets(read.view.ref, bounds, pairs))
    return tuple(found)


def positions_of(states: Sequence[bytes | None]) -> tuple[Ints, Ints]:
    """Bounds and pairs, as in AppliedOffsets, out of states: their positions are what they end with, after the generation."""
    held = [state for state in states if state]
    filled = np.fromiter((bool(state) for state in states), np.bool_, len(states))
    counts = np.zeros(len(states), np.int64)
    counts[filled] = [int(np.frombuffer(state, "<f8", 1, 24)[0]) for state in held]
    tails = [state[len(state) - 16 * n :] for state, n in zip(held, counts[filled].tolist(), strict=True)]
    pairs = np.frombuffer(b"".join(tails), "<f8").astype(np.int64).reshape(-1, 2)
    partition = pairs[:, 0] != GENERATION
    counts -= np.bincount(np.repeat(np.arange(len(states)), counts)[~partition], minlength=len(states))
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]), pairs[partition]
