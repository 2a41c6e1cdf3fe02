"""Applied offsets: the stream events that an online answer was computed from.

The state of an entity holds per partition the next offset: all of the entity's events below it are applied,
no others. A response can return these positions with the values, so that a log of them names the events to
recompute a value from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flywheel_common.arrays import Ints
from flywheel_feature.definitions.model import VersionRef


@dataclass(frozen=True, slots=True)
class AppliedOffsets:
    """Positions of one stream view for n rows: row i has pairs[bounds[i]:bounds[i + 1]]."""

    view: VersionRef
    bounds: Ints
    """[n + 1], ascending from 0."""
    pairs: Ints
    """[m, 2]: partition and next offset."""

    def rows(self, low: int, high: int) -> AppliedOffsets:
        first, last = int(self.bounds[low]), int(self.bounds[high])
        return AppliedOffsets(self.view, self.bounds[low : high + 1] - first, self.pairs[first:last])


def applied_name(view: VersionRef) -> str:
    """The column of a view's applied offsets in responses and logs: `traffic@3`."""
    return f"{view.id}@{view.version}"


def positions_of(states: Sequence[bytes | None]) -> tuple[Ints, Ints]:
    """Bounds and pairs, as in AppliedOffsets, of n states, without their pseudo-partitions."""
    held = [state for state in states if state]
    filled = np.fromiter((bool(state) for state in states), np.bool_, len(states))
    counts = np.zeros(len(states), np.int64)
    counts[filled] = [int(np.frombuffer(state, "<f8", 1, 24)[0]) for state in held]
    tails = [state[len(state) - 16 * n :] for state, n in zip(held, counts[filled].tolist(), strict=True)]
    pairs = np.frombuffer(b"".join(tails), "<f8").astype(np.int64).reshape(-1, 2)
    partition = pairs[:, 0] >= 0
    counts -= np.bincount(np.repeat(np.arange(len(states)), counts)[~partition], minlength=len(states))
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]), pairs[partition]
