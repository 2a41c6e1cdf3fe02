"""Spans of event time: tumbling windows, and ranges of whole panes."""

from __future__ import annotations

from dataclasses import dataclass

from flywheel_monitor.windows.errors import InvalidTimeRange


@dataclass(frozen=True, order=True)
class Span:
    """[start, end) in microseconds of event time."""

    start_us: int
    end_us: int


ALL_TIME = Span(-(2**61), 2**61)


def window_of(event_time_us: int, window_us: int) -> Span:
    """The window that contains an event; windows are aligned to 1970-01-01T00:00:00Z."""
    start = event_time_us // window_us * window_us
    return Span(start, start + window_us)


def whole_panes(start_us: int | None, end_us: int | None, pane_us: int) -> Span:
    """The range widened to whole panes; None is open. Raises InvalidTimeRange."""
    start = ALL_TIME.start_us if start_us is None else start_us // pane_us * pane_us
    end = ALL_TIME.end_us if end_us is None else -(-end_us // pane_us) * pane_us
    if end <= start:
        raise InvalidTimeRange("end_time must be later than start_time.")
    return Span(start, end)
