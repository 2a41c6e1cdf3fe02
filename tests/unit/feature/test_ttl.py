"""TTL: one rule for numbers, arrays and expressions, and the lifetimes that the online store gets from it."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_feature.definitions.ttl import earliest_fresh, is_stale, row_lifetime_ms, state_lifetime_ms

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR_MS = 3_600_000
TIMES = st.integers(-5, 5)


@given(st.lists(st.tuples(TIMES, TIMES), min_size=1), st.integers(0, 4))
def test_numbers_arrays_and_expressions_agree(pairs: list[tuple[int, int]], ttl: int) -> None:
    expected = [bool(ttl) and event < as_of - ttl for as_of, event in pairs]
    as_of, event = (np.array(times, np.int64) for times in zip(*pairs, strict=True))
    frame = pl.DataFrame({"as_of": as_of, "event": event})
    stale = frame.select(is_stale(pl.col("as_of"), pl.col("event"), ttl)).to_series()
    assert expected == [is_stale(a, e, ttl) for a, e in pairs]
    assert expected == is_stale(as_of, event, ttl).tolist()
    assert expected == stale.to_list()


@pytest.mark.parametrize(
    ("age", "ttl", "stale"), [(10, 10, False), (11, 10, True), (10**15, 0, False), (-1, 10, False)]
)
def test_a_value_is_stale_when_older_than_its_ttl(age: int, ttl: int, stale: bool) -> None:
    assert stale == is_stale(10**16 + age, 10**16, ttl)


@given(TIMES, st.integers(0, 4))
def test_earliest_fresh_is_the_oldest_time_not_stale(as_of: int, ttl: int) -> None:
    earliest = earliest_fresh(as_of, ttl)
    fresh = [event for event in range(-20, as_of + 1) if not is_stale(as_of, event, ttl)]
    assert (fresh[0] if ttl else None) == earliest


@pytest.mark.parametrize(
    ("ttl", "lifetime"),
    [
        (0, 0),
        (MINUTE, 60_000 + HOUR_MS),
        (60 * MINUTE, 2 * HOUR_MS),
        (120 * MINUTE, 4 * HOUR_MS),
    ],
)
def test_rows_are_kept_stale_as_long_as_fresh_or_an_hour(ttl: int, lifetime: int) -> None:
    assert lifetime == row_lifetime_ms(ttl)


@pytest.mark.parametrize(
    ("kept", "ttl", "lifetime"),
    [
        (60 * MINUTE, 0, 24 * HOUR_MS),
        (30 * 60 * MINUTE, 0, 30 * HOUR_MS),
        (30 * 60 * MINUTE, 5 * 60 * MINUTE, 40 * HOUR_MS),
    ],
)
def test_states_are_kept_for_their_tiles_and_twice_the_ttl(kept: int, ttl: int, lifetime: int) -> None:
    assert lifetime == state_lifetime_ms(kept, ttl)
