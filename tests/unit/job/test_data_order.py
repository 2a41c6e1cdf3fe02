"""The order of rows in an epoch, and its division among ranks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_job.data.order import EpochOrder, RowGroup, deal, interleaved, take

GROUPS = [RowGroup(n // 3, n % 3, rows) for n, rows in enumerate([5, 1, 9, 4, 4, 7, 2, 11])]
RANGES = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=6).map(
    lambda pairs: [(100 * n + begin, 100 * n + begin + rows) for n, (begin, rows) in enumerate(pairs)]
)


def rows_of(order: EpochOrder, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(window, row in the window) of every position."""
    found = []
    for window, (begin, end) in order.pieces(ranges):
        found += [(window.index, int(row)) for row in order.permutation(window)[begin:end]]
    return found


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_has_every_row_once(shuffle: bool) -> None:
    order = EpochOrder(GROUPS, seed=3, epoch=1, window_rows=8, shuffle=shuffle)
    assert order.rows == 43
    rows = rows_of(order, [(0, 43)])
    assert len(set(rows)) == 43
    assert {group for window in order.windows for group in window.groups} == set(GROUPS)
    assert all(window.rows >= 8 for window in order.windows[:-1])


def test_epochs_and_seeds_have_different_orders_and_equal_ones_the_same() -> None:
    def first(seed: int, epoch: int) -> list[tuple[int, int]]:
        return rows_of(EpochOrder(GROUPS, seed, epoch, 100, shuffle=True), [(0, 43)])

    assert first(1, 0) == first(1, 0)
    assert first(1, 0) != first(1, 1)
    assert first(1, 0) != first(2, 0)


def test_without_shuffling_rows_keep_their_order() -> None:
    order = EpochOrder(GROUPS, 0, 0, 8, shuffle=False)
    assert [g for w in order.windows for g in w.groups] == GROUPS
    assert rows_of(order, [(0, 15)]) == [(0, row) for row in range(15)]


@given(RANGES, st.integers(1, 7))
def test_shares_are_equal_disjoint_and_leave_out_less_than_one_row_a_rank(
    ranges: list[tuple[int, int]], ranks: int
) -> None:
    def rows(parts: list[tuple[int, int]]) -> list[int]:
        return [row for begin, end in parts for row in range(begin, end)]

    every = rows(ranges)
    shares = [rows(share) for share in deal(ranges, ranks)]
    assert [len(share) for share in shares] == [len(every) // ranks] * ranks
    joined = [row for share in shares for row in share]
    assert joined == every[: len(joined)]


@given(RANGES, st.integers(0, 200))
def test_take_splits_ranges_without_losing_rows(ranges: list[tuple[int, int]], rows: int) -> None:
    head, rest = take(ranges, rows)
    positions = [row for begin, end in head + rest for row in range(begin, end)]
    assert positions == [row for begin, end in ranges for row in range(begin, end)]
    assert sum(end - begin for begin, end in head) == min(rows, len(positions))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_global_batches_are_the_same_for_every_number_of_ranks(ranks: int) -> None:
    shares = [list(interleaved(0, 43, rank, ranks, 8 // ranks)) for rank in range(ranks)]
    for step in range(5):
        parts = [share[step][0] for share in shares]
        assert parts[0][0] == step * 8
        assert parts[-1][1] == step * 8 + 8
        assert all(left[1] == right[0] for left, right in pairwise(parts))
    assert {share[4][1] for share in shares} == {40}


def test_a_shuffled_window_is_a_permutation() -> None:
    order = EpochOrder(GROUPS, 0, 0, 20, shuffle=True)
    window = order.windows[0]
    assert np.array_equal(np.sort(order.permutation(window)), np.arange(window.rows))
    assert not np.array_equal(order.permutation(window), np.arange(window.rows))
