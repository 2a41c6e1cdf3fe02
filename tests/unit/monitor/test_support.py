"""Single wrong times move neither a watermark nor a bake time beyond the times of the other events."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flywheel_monitor.windows.support import RECENT, covered, reached_time, with_recent

TIMES = st.integers(-(10**6), 10**6)
ANY_TIME = st.integers(-(2**62), 2**62)
"""Also times that are far from those of the others."""


def arrived(times: list[int], batch: int = 1) -> int | None:
    """The reached time after the times arrived in batches."""
    recent: list[int] = []
    for start in range(0, len(times), batch):
        recent = with_recent(recent, times[start : start + batch])
    assert len(recent) <= RECENT
    return reached_time(recent)


@given(st.lists(TIMES, max_size=80), st.integers(1, 50))
def test_a_quarter_of_the_last_events_and_three_have_reached_it(times: list[int], batch: int) -> None:
    found, last = arrived(times, batch), times[-32:]
    if len(last) < 3:
        assert found is None
        return
    assert found is not None and found in last
    at_least = sum(t >= found for t in last)
    later = sum(t > found for t in last)
    assert at_least >= 3 and at_least * 4 >= len(last)
    assert later < 3 or later * 4 < len(last), "a later time is not reached"


@given(st.lists(TIMES, min_size=3, max_size=80), ANY_TIME, st.data())
def test_one_wrong_time_reaches_no_time_that_no_other_event_reached(
    times: list[int], wrong: int, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(times)))
    found = arrived([*times[:place], wrong, *times[place:]])
    assert found is not None
    others = sorted(times[-32:])
    assert others[0] <= found <= others[-2], "two other events have reached it"


@given(st.integers(0, 200), ANY_TIME)
@example(0, 2**62)
def test_a_wrong_time_is_forgotten_after_32_events(place: int, wrong: int) -> None:
    times = list(range(0, 2000, 10))
    with_wrong = [*times[:place], wrong, *times[place:], *range(2000, 2320, 10)]
    assert arrived([*times, *range(2000, 2320, 10)]) == arrived(with_wrong) == 2310 - 7 * 10


def bake(times: list[int]) -> int:
    """The bake time in the unit of the times."""
    found = covered(np.array(times, np.int64))
    return 0 if found is None else found[1] - found[0]


@given(st.lists(TIMES, max_size=300), ANY_TIME)
@example([0] * 10, 2**62)
@example(list(range(10)), -(2**62))
def test_one_wrong_time_adds_no_bake_time_of_its_own(times: list[int], wrong: int) -> None:
    honest = max(times, default=0) - min(times, default=0)
    assert 0 <= bake([*times, wrong]) <= honest
    assert bake(times) <= honest


@given(st.lists(TIMES, min_size=1, max_size=300), st.lists(ANY_TIME, min_size=2, max_size=2))
def test_the_next_step_never_begins_after_the_other_predictions(times: list[int], wrong: list[int]) -> None:
    found = covered(np.array([*times, *wrong], np.int64))
    assert found is None or found[1] <= max(times)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([], None),
        ([5], None),
        ([1, 2, 3], None),
        ([4, 4, 4], (4, 4)),
        ([1, 2, 3, 4, 5], (3, 3)),
        ([9, 1, 7, 3, 5, 11], (5, 7)),
        # One percent of 1,000 old times (rounded up) start no bake time; the end is the third newest.
        (list(range(1000)), (9, 997)),
    ],
)
def test_the_covered_time_leaves_out_both_ends(times: list[int], expected: tuple[int, int] | None) -> None:
    assert expected == covered(np.array(times, np.int64))


def test_a_wrong_clock_of_one_percent_of_the_traffic_starts_no_bake_time() -> None:
    hour = list(range(3600))
    yesterday = [-86_400 + t for t in range(30)]
    assert 3550 <= bake([*hour, *yesterday]) <= 3600
