"""Validation of metric points that arrive in columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from flywheel_job.outcome import MetricPoint
from flywheel_trainer.runs.errors import InvalidMetricKey, TooManyPoints, UnequalColumns

MAX_POINTS = 100_000
KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@/{}=,: -]{0,249}")


@dataclass(frozen=True)
class LoggedPoints:
    """What became of the points of one call; repeats of a stored point are in neither number."""

    stored: int
    """New points."""
    ignored: int
    """Points whose (key, step) has another value already."""


def metric_points(
    keys: Sequence[str], steps: Sequence[int], values: Sequence[float], times: Sequence[int]
) -> list[MetricPoint]:
    """The points of one LogMetrics call. Raises UnequalColumns, TooManyPoints, InvalidMetricKey."""
    if not len(keys) == len(steps) == len(values) == len(times):
        lengths = f"{len(keys)}, {len(steps)}, {len(values)}, {len(times)}"
        raise UnequalColumns(f"keys, steps, values and times must have equal lengths, not {lengths}.")
    if len(keys) > MAX_POINTS:
        raise TooManyPoints(f"One call can contain at most {MAX_POINTS} points, not {len(keys)}.")
    for key in set(keys):
        if KEY.fullmatch(key) is None:
            raise InvalidMetricKey(f"Metric key {key[:80]!r} must match {KEY.pattern}.")
    return [MetricPoint(*point) for point in zip(keys, steps, values, times, strict=True)]
