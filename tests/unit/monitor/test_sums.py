"""Exact sums: any order, no overflow, and panes of the first layout version."""

from __future__ import annotations

import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_monitor.windows import sums
from flywheel_monitor.windows.bins import ColumnReference
from flywheel_monitor.windows.errors import UnknownLayout
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.output import LARGEST_SCORE, Output
from flywheel_monitor.windows.packing import pack, unpack
from flywheel_monitor.windows.pane_sums import sum_panes
from flywheel_monitor.windows.panes import PackedPane
from flywheel_monitor.windows.pieces import DAY_US, HOUR_US, Kept, pieces, rollup_widths
from flywheel_monitor.windows.span import ALL_TIME, Span

LARGEST_TERM = (2 * LARGEST_SCORE) ** 4


def accumulated(values: list[float]) -> np.ndarray:
    total = np.zeros(sums.LIMBS, np.int64)
    for limb, part in enumerate(sums.limbs_of(np.array(values, np.float64))):
        total[limb] += part.sum()
    return sums.carried(total)


@given(st.lists(st.floats(-LARGEST_TERM, LARGEST_TERM), min_size=1, max_size=30), st.randoms())
@settings(max_examples=200, deadline=None)
def test_a_sum_is_exact_in_any_order(values: list[float], random: object) -> None:
    # Every term is rounded to a multiple of 2^-32, half to even.
    expected = sum(Fraction(round(Fraction(v) * 2**32), 2**32) for v in values)
    total = accumulated(values)
    assert float(expected) == sums.values(total[None])[0]
    shuffled = values[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    parts = [accumulated([v]) for v in shuffled]
    assert total.tolist() == sums.carried(np.sum(parts, axis=0)).tolist()
    assert [0.0] == sums.values(sums.carried(total - accumulated(values))[None])


def test_sixty_million_of_the_largest_terms_do_not_overflow() -> None:
    one = accumulated([LARGEST_TERM])
    total = np.zeros_like(one)
    for _ in range(60):
        total = sums.carried(total + one * 2**20)
    assert 60 * 2**20 * LARGEST_TERM == sums.values(total[None])[0]


def test_an_overflow_is_an_error_and_no_wrong_number() -> None:
    with pytest.raises(OverflowError):
        sums.limbs_of(np.array([2.0**170]))
    full = np.array([0, 0, 0, 0, 1 << 61], np.int64)
    with pytest.raises(OverflowError):
        sums.carried(full + full)


def test_a_pane_of_the_first_layout_version_is_read() -> None:
    number = ColumnReference("v__x", True, (5, 5), edges=(0.0,), stddev=1.0, minimum=-3.0, maximum=3.0)
    layout = Layout.of([number])
    score_bin = layout.scores + 100
    indices, counts = [0, 1, score_bin, layout.positives + 100, layout.failures], [3, -1, 2, 1, 4]
    packed = struct.pack("<I5I5i", 5, *indices, *counts)
    stored = [round(-1.5 * 2**16), round(0.75 * 2**32), round(0.3125 * 2**32), 2**32, *range(13)]
    window = sum_panes(layout, [(0, PackedPane(packed, struct.pack("<17q", *stored), 9))] * 2)
    assert 18 == window.predictions
    assert [6, -2] == window.counts[:2].tolist()
    assert (8, 4, 2) == (window.failures, window.scores[100], window.positives[100])
    assert [-1.5 * 2] == sums.values(window.sums[:1])
    assert [1.5, 0.625, 2.0] == sums.values(window.sums[1:4])
    assert [2 * k / 2**32 for k in range(13)] == sums.values(window.sums[4:17])
    assert not window.sums[17:].any()


def test_a_newer_layout_version_is_refused() -> None:
    newer = bytearray(pack(np.array([1]), np.array([1])))
    newer[0] += 1
    with pytest.raises(UnknownLayout, match="newer monitor"):
        unpack(bytes(newer))


@pytest.mark.parametrize("value", [1, -128, 127, 128, -40_000, 2**31, -(2**40)])
def test_counts_of_any_size_are_packed(value: int) -> None:
    indices, values = unpack(pack(np.array([7, 9]), np.array([0, value])))
    assert ([7, 9], [0, value]) == (indices.tolist(), values.tolist())


minute = 60_000_000


@given(st.integers(-3000, 6000), st.integers(1, 6000))
def test_pieces_cover_every_pane_once_with_few_pieces(start: int, length: int) -> None:
    span = Span(start * minute, (start + length) * minute)
    found = pieces(span, (minute, HOUR_US, DAY_US))
    covered = sorted(at for p in found for at in range(p.span.start_us, p.span.end_us, p.width_us))
    widths = {at: p.width_us for p in found for at in range(p.span.start_us, p.span.end_us, p.width_us)}
    at = span.start_us
    for begin in covered:
        assert at == begin
        at += widths[begin]
    assert at == span.end_us
    assert len(covered) <= 2 * 59 + 2 * 23 + length // 1440


@given(st.integers(-3000, 9000), st.integers(1, 9000), st.integers(0, 4), st.sampled_from([1, 20]))
def test_where_minutes_are_deleted_hours_cover_a_wider_span(
    start: int, length: int, day: int, least: int
) -> None:
    kept = Kept(minute, (HOUR_US, DAY_US), day * DAY_US)
    span = Span(start * minute, (start + length) * minute)
    wide = kept.readable(span)
    assert wide.start_us <= span.start_us and span.end_us <= wide.end_us
    for end, asked in ((wide.start_us, span.start_us), (wide.end_us, span.end_us)):
        assert end == asked or (day and end % HOUR_US == 0 and abs(end - asked) < HOUR_US)
    at = wide.start_us
    for piece in sorted(kept.pieces(span, least), key=lambda p: p.span):
        assert at == piece.span.start_us
        assert piece.width_us > minute or not day or piece.span.start_us >= day * DAY_US
        assert piece.width_us in (minute, HOUR_US) or least * DAY_US <= wide.end_us - wide.start_us
        at = piece.span.end_us
    assert at == wide.end_us


def test_all_time_has_few_pieces() -> None:
    assert 5 >= len(pieces(ALL_TIME, (minute, HOUR_US, DAY_US)))
    assert ((HOUR_US, DAY_US), (DAY_US,), ()) == tuple(rollup_widths(w) for w in (minute, HOUR_US, 7_000_000))


def test_bins_of_numbers_have_a_bounded_relative_width() -> None:
    output = Output(center=293.0, scale=5.0, kind=Output().kind.REGRESSION)
    values = np.concatenate(
        [293 + np.linspace(-25, 25, 999), 10.0 ** np.arange(3, 12), -(10.0 ** np.arange(12))]
    )
    up = output.score_bins(values + np.maximum(np.abs(values - 293) * 0.06, 0.5))
    assert (up > output.score_bins(values)).all(), (
        "6 % of the distance, or a tenth of the scale, is another bin"
    )
    assert (np.diff(output.score_bins(np.sort(values))) >= 0).all()
