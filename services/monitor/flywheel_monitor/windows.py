"""Tumbling windows of event time, and when a stream has passed them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Span:
    """[start, end), microseconds of event time."""

    start_us: int
    end_us: int


def window_of(event_time_us: int, window_us: int) -> Span:
    """The window that holds an event; windows are aligned to 1970-01-01T00:00:00Z."""
    start = event_time_us // window_us * window_us
    return Span(start, start + window_us)


@dataclass(frozen=True)
class PartitionProgress:
    """Newest event time seen in a partition, and whether everything that the broker holds for it was read."""

    newest_us: int
    caught_up: bool


def watermark(partitions: Iterable[PartitionProgress]) -> int | None:
    """Event time up to which all partitions are read: the slowest one's newest event, where one that has caught up holds
    nobody back. None without any partition."""
    known = list(partitions)
    if not known:
        return None
    behind = [p.newest_us for p in known if not p.caught_up]
    return min(behind) if behind else max(p.newest_us for p in known)


def closed(windows: Sequence[Span], watermark_us: int, delay_us: int) -> list[Span]:
    """The windows whose end lies at least `delay_us` behind the watermark, oldest first."""
    return sorted(w for w in windows if w.end_us + delay_us <= watermark_us)
