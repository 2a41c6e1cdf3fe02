"""Support: how many events must have a time before it decides anything.

A single event can have any time of the past, or of the years between a replayed history and now: its sender's
clock was wrong, or it named no time while the others were replayed. Therefore the newest or oldest time of a
stream decides nothing. What decides is the SUPPORT-th newest or oldest time, at least, so that one wrong time
moves a decision by no more than the distance to the next event of the others.

* Watermarks (`reached_time`): of the last RECENT events of a model in a partition, in order of arrival, a
  quarter and at least SUPPORT must have reached a time. A wrong time is forgotten after RECENT events.
* Bake times (`covered`): from the SUPPORT-th oldest prediction, and at least the oldest percent (of it
  OLDEST_LIMIT), to the SUPPORT-th newest.
* Champions and retired alerts: a version serves since a time when SUPPORT predictions are newer.

A stream with fewer events than SUPPORT reaches no time. Nothing waits for more than these events: the idle
rule (all partitions are read) stays that of `watermark`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from flywheel_common.arrays import Ints

SUPPORT = 3
"""Fewest events that must have reached a time."""
RECENT = 32
"""Events of a model in a partition whose times are kept for its watermark."""
WATERMARK_SHARE = 0.25
"""Share of the recent events that must have reached a watermark."""
OLDEST_SHARE = 0.01
"""Share of the oldest predictions that start no bake time."""
OLDEST_LIMIT = 1_000
"""Most predictions of that share, which bounds what a comparison reads."""


def with_recent(before: Sequence[int], times: Sequence[int]) -> list[int]:
    """The times of the last RECENT events, after `times` arrived in this order."""
    return [*before, *times][-RECENT:]


def reached_time(recent: Sequence[int]) -> int | None:
    """The event time that enough of the recent events have reached; None with fewer than SUPPORT events."""
    needed = max(SUPPORT, math.ceil(len(recent) * WATERMARK_SHARE))
    return sorted(recent)[-needed] if len(recent) >= needed else None


def oldest_skipped(predictions: int) -> int:
    """How many of the oldest predictions start no bake time."""
    return min(max(SUPPORT, math.ceil(predictions * OLDEST_SHARE)), OLDEST_LIMIT) - 1


def covered(times: Ints) -> tuple[int, int] | None:
    """The first and last event time that predictions cover; None if they cover no time.

    Without the newest share of the times, because the next step of a rollout begins at the last one: its
    predictions must not be counted twice.
    """
    skipped = oldest_skipped(len(times))
    if len(times) <= skipped or len(times) < SUPPORT:
        return None
    ordered = np.sort(times)
    first, last = int(ordered[skipped]), int(ordered[-SUPPORT])
    return (first, last) if first <= last else None
