"""The bound of event times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from flywheel_common.clock import ManualClock
from flywheel_common.errors import EventTimeOutOfRange
from flywheel_common.event_time import EventTimeBound

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
NOON_MICROS = int(NOON.timestamp()) * 1_000_000


def test_times_up_to_the_skew_are_accepted() -> None:
    bound = EventTimeBound(ManualClock(NOON), max_clock_skew_seconds=300)
    assert bound.latest() == NOON_MICROS + 300_000_000
    bound.check(NOON_MICROS + 300_000_000, "event_time")
    bound.check(-1, "event_time")
    bound.check(1, "event_time")


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (NOON_MICROS + 300_000_001, "2024-05-01T12:05:00.000001Z"),
        (253_402_300_799_999_999, "9999-12-31T23:59:59.999999Z"),
        (2**62, f"{2**62} µs since 1970"),
    ],
)
def test_later_times_are_refused_with_the_bound(micros: int, text: str) -> None:
    bound = EventTimeBound(ManualClock(NOON), max_clock_skew_seconds=300)
    with pytest.raises(EventTimeOutOfRange, match="after the latest accepted time") as raised:
        bound.check(micros, "event_time")
    assert raised.value.reason == "OUT_OF_RANGE"
    assert text in raised.value.message
    assert raised.value.metadata == {"field": "event_time", "latest": "2024-05-01T12:05:00Z"}


def test_an_unset_time_is_refused() -> None:
    with pytest.raises(EventTimeOutOfRange, match="never set"):
        EventTimeBound(ManualClock(NOON)).check(0, "as_of")


def test_the_bound_follows_the_clock() -> None:
    clock = ManualClock(NOON)
    bound = EventTimeBound(clock, 300)
    late = NOON + timedelta(seconds=600)
    clock.advance(300)
    bound.check(int(late.timestamp()) * 1_000_000, "event_time")
