"""Sums of stored panes: of one slice of time, and of a window in blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from flywheel_common.arrays import Ints
from flywheel_monitor.windows.blocks import block_of
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.packing import unpack
from flywheel_monitor.windows.panes import PackedPane, stored_sums
from flywheel_monitor.windows.sums import LIMBS, carried


class PaneSum:
    """The sum of some panes: the indices of the counts, the counts, and the sums [layout.sums, LIMBS]."""

    def __init__(self, layout: Layout, panes: Iterable[PackedPane]) -> None:
        counts = np.zeros(layout.size, np.int64)
        self.sums = np.zeros((layout.sums, LIMBS), np.int64)
        for pane in panes:
            indices, values = unpack(pane.counts)
            counts[indices] += values
            self.sums += stored_sums(layout, pane)
        self.indices: Ints = np.flatnonzero(counts)
        self.values: Ints = counts[self.indices]

    @property
    def size(self) -> int:
        """Memory in bytes."""
        return int(self.indices.nbytes + self.values.nbytes + self.sums.nbytes) + 512


class WindowSum:
    """Adds up panes in blocks of a window."""

    def __init__(self, layout: Layout, rows: Mapping[int, int]) -> None:
        """`rows`: predictions by start of the panes in microseconds."""
        self._layout = layout
        self._total = sum(rows.values())
        self._block = blocks_of(rows)
        size = max(self._block.values(), default=0) + 1
        self._counts = np.zeros((size, layout.size), np.int64)
        self._sums = np.zeros((size, layout.sums, LIMBS), np.int64)

    def take_over(self, block: int, counts: WindowCounts) -> None:
        """Take the block of other counts in place of its panes."""
        self._counts[block] = counts.count_blocks[block]
        self._sums[block] = counts.sum_blocks[block]

    def add(self, panes: Iterable[tuple[int, PaneSum]]) -> None:
        """Add panes, each with its start, which is one of the starts."""
        blocks: dict[int, list[PaneSum]] = {}
        for start, pane in panes:
            blocks.setdefault(self._block[start], []).append(pane)
        for at, found in blocks.items():
            # One call of numpy for all panes of a block: they are many and small. Their counts are rows, far
            # fewer than the 2^53 up to which floats add exactly.
            indices = np.concatenate([pane.indices for pane in found])
            values = np.concatenate([pane.values for pane in found])
            self._counts[at] += np.bincount(indices, values, self._layout.size).astype(np.int64)
            self._sums[at] += np.stack([pane.sums for pane in found]).sum(axis=0)

    def result(self) -> WindowCounts:
        return WindowCounts(self._layout, self._counts, carried(self._sums), self._total)


def blocks_of(rows: Mapping[int, int]) -> dict[int, int]:
    """Start of a pane → the block that it belongs to; `rows`: predictions by start."""
    starts = sorted(rows)
    blocks = block_of(np.array([rows[start] for start in starts], np.int64))
    return dict(zip(starts, blocks.tolist(), strict=True))


def sum_panes(layout: Layout, panes: Sequence[tuple[int, PackedPane]]) -> WindowCounts:
    """The counts of a window that consists of these panes, each with its start in microseconds."""
    rows: dict[int, int] = {}
    for start, pane in panes:
        rows[start] = rows.get(start, 0) + pane.predictions
    total = WindowSum(layout, rows)
    total.add((start, PaneSum(layout, [pane])) for start, pane in panes)
    return total.result()
