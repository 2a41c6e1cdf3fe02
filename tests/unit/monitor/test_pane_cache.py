"""Cached sums of panes: used only for the state they were read in, within a bound of memory."""

from __future__ import annotations

import numpy as np
import pytest

from flywheel_monitor.store.postgres.pane_cache import PaneCache, PaneState, SliceKey, WindowKey
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.packing import pack, pack_sums
from flywheel_monitor.windows.pane_sums import PaneSum, sum_panes
from flywheel_monitor.windows.panes import PackedPane
from flywheel_monitor.windows.pieces import Piece
from flywheel_monitor.windows.span import Span
from flywheel_monitor.windows.sums import LIMBS
from tests.support.builders.monitor import REFERENCE

LAYOUT = Layout.of(REFERENCE.columns)


def total(*rows: int) -> PaneSum:
    """The sum of panes with so many rows in the first bin."""
    sums = pack_sums(np.zeros((LAYOUT.sums, LIMBS), np.int64))
    return PaneSum(LAYOUT, [PackedPane(pack(np.array([0]), np.array([n])), sums, n) for n in rows])


def key(start: int, segment: str = "") -> SliceKey:
    return SliceKey((1, 2), segment, 60, start)


def test_a_sum_is_used_for_its_state_only() -> None:
    cache = PaneCache()
    cache.put(key(0), PaneState(2, 100), total(3, 4))
    found = cache.get(key(0), PaneState(2, 100))
    assert found is not None
    assert ([0], [7]) == (found.indices.tolist(), found.values.tolist())
    assert cache.get(key(0), PaneState(2, 101)) is None
    assert cache.get(key(0), PaneState(3, 100)) is None
    assert cache.get(key(0, "s"), PaneState(2, 100)) is None
    cache.put(key(0), PaneState(2, 101), total(9))
    assert cache.get(key(0), PaneState(2, 100)) is None


def test_the_least_recently_used_sums_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flywheel_monitor.store.postgres.pane_cache.MOST_BYTES", 3 * total(1).size)
    cache, state = PaneCache(), PaneState(1, 1)
    for start in range(3):
        cache.put(key(start), state, total(1))
    assert cache.get(key(0), state) is not None
    cache.put(key(3), state, total(1))
    assert [True, False, True, True] == [cache.get(key(start), state) is not None for start in range(4)]


def test_a_window_is_used_for_the_state_of_all_its_slices_only() -> None:
    cache, counts = PaneCache(), sum_panes(LAYOUT, ())
    parts = (Piece(60, Span(0, 120)),)
    name, state = WindowKey((1, 2), "", parts), [(60, 0, 7, 2, 100), (60, 60, 1, 1, 101)]
    cache.put_window(name, state, counts)
    assert cache.window(name, list(state)) is counts
    assert cache.window(name, state[:1]) is None
    assert cache.window(name, [state[0], (60, 60, 1, 1, 102)]) is None
    assert cache.window(name._replace(segment="s"), state) is None
    assert cache.window(name._replace(parts=(Piece(60, Span(0, 60)),)), state) is None


def test_windows_and_sums_of_panes_share_one_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, state = sum_panes(LAYOUT, ()), PaneState(1, 1)
    limit = counts.size + total(1).size
    monkeypatch.setattr("flywheel_monitor.store.postgres.pane_cache.MOST_BYTES", limit)
    cache, name = PaneCache(), WindowKey((1,), "", ())
    cache.put(key(0), state, total(1))
    cache.put_window(name, [], counts)
    assert cache.get(key(0), state) is not None
    cache.put(key(1), state, total(1))
    assert [None, True] == [cache.window(name, []), cache.get(key(0), state) is not None]
