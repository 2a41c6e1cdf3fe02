"""Prometheus counters of online reads: hits and misses per view."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import Counter

_READS = Counter(
    "flywheel_feature_online_reads",
    "Entities looked up per view, found (hit) or never written (miss)",
    ["view", "result"],
)


class ReadCounters:
    """Counts the hits and misses of answers; the hit ratio is hit / (hit + miss)."""

    def __init__(self) -> None:
        self._counters: dict[str, tuple[Any, Any]] = {}

    def count(self, view_versions: Iterable[str], event_times: npt.NDArray[np.int64]) -> None:
        """`event_times` [views, rows], 0 where an entity was never written."""
        rows = event_times.shape[1]
        for view, found in zip(view_versions, np.count_nonzero(event_times, axis=1).tolist(), strict=True):
            counters = self._counters.get(view)
            if counters is None:
                counters = self._counters[view] = _READS.labels(view, "hit"), _READS.labels(view, "miss")
            if found:
                counters[0].inc(found)
            if found < rows:
                counters[1].inc(rows - found)
