"""The load of one model: the signals by which a deployment scales gateways and model servers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """`queue_depth`: predictions that wait for a batch. `in_flight`: predictions being answered.
    `utilisation`: busy share of the batch slots of its busiest release, averaged over about ten seconds."""

    model: str
    queue_depth: int
    in_flight: int
    utilisation: float


class RecentLatencies:
    """Latencies of the last answers of one model: at most `max_count`, not older than `seconds`."""

    def __init__(self, *, max_count: int = 2_000, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._recent: deque[tuple[float, float]] = deque(maxlen=max_count)

    def add(self, latency: float, now: float) -> None:
        self._recent.append((now, latency))

    def p99(self, now: float) -> float:
        """The 99th percentile (nearest rank); NaN when there was no answer."""
        recent = [latency for at, latency in list(self._recent) if at >= now - self._seconds]
        return float(np.percentile(recent, 99, method="inverted_cdf")) if recent else float("nan")
