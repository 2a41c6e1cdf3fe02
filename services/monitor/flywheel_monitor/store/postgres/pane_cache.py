"""Sums of stored panes in memory, so that a window is read again without reading its panes.

An entry is the sum over variants and partitions of the panes of one slice of time, the slices of a part of a
window, or the counts of a whole window. It is used while the panes are the same: every change of a pane gives
its row a larger transaction id (xmin), so that their number and the sum of their ids tell every state of them
apart, until the ids of the database wrap around.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple, TypeAlias

from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.pane_sums import PaneSum
from flywheel_monitor.windows.pieces import Part, Piece

MOST_BYTES = 16 * 1024 * 1024


class PaneSource(NamedTuple):
    """Whose panes: of one variant, or of all variants of a version that serve."""

    version_id: int = 0
    variant_id: int = 0


class SliceState(NamedTuple):
    """One slice of time of a window: its predictions, and what tells states of its panes apart: their number,
    and the sum of their transaction ids."""

    width_us: int
    start_us: int
    predictions: int
    panes: int
    changes: int


WindowState: TypeAlias = list[SliceState]
"""The slices of a window by width and start."""


class PartState(NamedTuple):
    """The slices of a part of a window, and what tells states of the panes that contain it apart."""

    panes: int
    changes: int
    slices: tuple[SliceState, ...]


class SliceKey(NamedTuple):
    """The panes of a source in one slice of time."""

    source: PaneSource
    segment: str
    width_us: int
    start_us: int


class PartKey(NamedTuple):
    """A part of the windows of a source."""

    source: PaneSource
    segment: str
    part: Part


class WindowKey(NamedTuple):
    """A window of a source."""

    source: PaneSource
    segment: str
    pieces: tuple[Piece, ...]

    def part(self, part: Part) -> PartKey:
        return PartKey(self.source, self.segment, part)

    def slice(self, state: SliceState) -> SliceKey:
        return SliceKey(self.source, self.segment, state.width_us, state.start_us)


SLICE_BYTES = 256
"""Memory of the state of one slice of a window or of a part of it."""

_Key: TypeAlias = SliceKey | PartKey | WindowKey


class _Entry(NamedTuple):
    state: SliceState | PartState | WindowState
    found: PaneSum | WindowCounts | None
    size: int
    """Memory in bytes."""


class PaneCache:
    """The most recently used sums, in at most MOST_BYTES."""

    def __init__(self) -> None:
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._bytes = 0

    def get(self, key: SliceKey, state: SliceState) -> PaneSum | None:
        """The sum of the panes in this state."""
        entry = self._entries.get(key)
        if entry is None or entry.state != state:
            return None
        self._entries.move_to_end(key)
        assert isinstance(entry.found, PaneSum)
        return entry.found

    def window(self, key: WindowKey) -> tuple[WindowState, WindowCounts] | None:
        """The state in which the window was read last, and its counts."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        assert isinstance(entry.state, list)
        assert isinstance(entry.found, WindowCounts)
        return entry.state, entry.found

    def part(self, key: PartKey) -> PartState | None:
        """The state in which the part was read last."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        assert isinstance(entry.state, PartState)
        return entry.state

    def put(self, key: SliceKey, state: SliceState, total: PaneSum) -> None:
        self._add(key, _Entry(state, total, total.size))

    def put_part(self, key: PartKey, state: PartState) -> None:
        self._add(key, _Entry(state, None, SLICE_BYTES * (1 + len(state.slices))))

    def put_window(self, key: WindowKey, state: WindowState, counts: WindowCounts) -> None:
        self._add(key, _Entry(state, counts, counts.size + SLICE_BYTES * len(state)))

    def _add(self, key: _Key, entry: _Entry) -> None:
        before = self._entries.pop(key, None)
        if before is not None:
            self._bytes -= before.size
        self._entries[key] = entry
        self._bytes += entry.size
        while self._bytes > MOST_BYTES:
            _, removed = self._entries.popitem(last=False)
            self._bytes -= removed.size
