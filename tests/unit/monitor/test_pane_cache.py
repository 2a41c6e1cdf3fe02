"""Cached sums of panes: used only for the state they were read in, within a bound of memory."""

from __future__ import annotations

import numpy as np
import pytest

from flywheel_monitor.store.postgres.pane_cache import PaneCache, PaneSource, SliceKey, SliceState, WindowKey
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.packing import pack, pack_sums
from flywheel_monitor.windows.pane_sums import PaneSum, sum_panes
from flywheel_monitor.windows.panes import PackedPane
from flywheel_monitor.windows.pieces import Piece
from flywheel_monitor.windows.span import Span
from flywheel_monitor.windows.sums import LIMBS
from tests.support.builders.monitor import REFERENCE

LAYOUT = Layout.of(REFERENCE.columns)
SOURCE = PaneSource(version_id=1)


def total(*rows: int) -> PaneSum:
    """The sum of panes with so many rows in the first bin."""
    sums = pack_sums(np.zeros((LAYOUT.sums, LIMBS), np.int64))
    return PaneSum(LAYOUT, [PackedPane(pack(np.array([0]), np.array([n])), sums, n) for n in rows])


def key(start: int, segment: str = "") -> SliceKey:
    return SliceKey(SOURCE, segment, 60, start)


def state(panes: int, changes: int, start: int = 0) -> SliceState:
    return SliceState(60, start, 7, panes, changes)


def test_a_sum_is_used_for_its_state_only() -> None:
    cache = PaneCache()
    cache.put(key(0), state(2, 100), total(3, 4))
    found = cache.get(key(0), state(2, 100))
    assert found is not None
    assert ([0], [7]) == (found.indices.tolist(), found.values.tolist())
    assert cache.get(key(0), state(2, 101)) is None
    assert cache.get(key(0), state(3, 100)) is None
    assert cache.get(key(0, "s"), state(2, 100)) is None
    cache.put(key(0), state(2, 101), total(9))
    assert cache.get(key(0), state(2, 100)) is None


def test_the_least_recently_used_sums_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flywheel_monitor.store.postgres.pane_cache.MOST_BYTES", 3 * total(1).size)
    cache = PaneCache()
    for start in range(3):
        cache.put(key(start), state(1, 1), total(1))
    assert cache.get(key(0), state(1, 1)) is not None
    cache.put(key(3), state(1, 1), total(1))
    assert [True, False, True, True] == [cache.get(key(s), state(1, 1)) is not None for s in range(4)]


def test_a_window_has_the_state_that_it_was_read_in() -> None:
    cache, counts = PaneCache(), sum_panes(LAYOUT, ())
    name = WindowKey(SOURCE, "", (Piece(60, Span(0, 120)),))
    known = [state(2, 100), state(1, 101, start=60)]
    cache.put_window(name, known, counts)
    assert cache.window(name) == (known, counts)
    assert cache.window(name._replace(segment="s")) is None
    assert cache.window(name._replace(source=PaneSource(variant_id=1))) is None
    assert cache.window(name._replace(pieces=(Piece(60, Span(0, 60)),))) is None


def test_windows_and_sums_of_panes_share_one_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, known = sum_panes(LAYOUT, ()), state(1, 1)
    limit = counts.size + total(1).size
    monkeypatch.setattr("flywheel_monitor.store.postgres.pane_cache.MOST_BYTES", limit)
    cache, name = PaneCache(), WindowKey(SOURCE, "", ())
    cache.put(key(0), known, total(1))
    cache.put_window(name, [], counts)
    assert cache.get(key(0), known) is not None
    cache.put(key(1), known, total(1))
    assert [None, True] == [cache.window(name), cache.get(key(0), known) is not None]
