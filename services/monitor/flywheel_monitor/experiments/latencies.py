"""The difference of a quantile of the latencies between the arms of an experiment."""

from __future__ import annotations

import math
from functools import cached_property
from itertools import accumulate

from flywheel_monitor.experiments.metric import Metric
from flywheel_monitor.experiments.tally import Tally
from flywheel_monitor.intervals.differences import POWER, Interval
from flywheel_monitor.intervals.quantiles import quantile_bounds, reached_bounds
from flywheel_monitor.windows.histograms import LATENCY_EDGES_MS

EDGES: list[float] = LATENCY_EDGES_MS.tolist()
MOST_TIMES = 2.0**20
"""How many times as many predictions are looked for at most."""


class Latencies:
    """A QUANTILE metric of both arms. Quantiles are upper edges of bins, 10 % wide: a difference of less than
    that is never detectable."""

    def __init__(self, metric: Metric, tally: Tally) -> None:
        self._metric = metric
        self._counts = [arm.latencies for arm in tally.arms]

    @cached_property
    def quantiles(self) -> tuple[float, float]:
        """Milliseconds of control and treatment; 0 without predictions."""
        control, treatment = (_quantile(counts, self._metric.quantile) for counts in self._counts)
        return control, treatment

    @property
    def difference(self) -> float | None:
        """None while an arm has no predictions."""
        return self._change(*self.quantiles) if all(map(sum, self._counts)) else None

    def interval(self, alpha: float) -> Interval:
        """The interval of the difference at level 1 - alpha: each of the four bounds of the two quantiles may
        be wrong with alpha / 4."""
        control, treatment = (
            quantile_bounds(EDGES, counts, self._metric.quantile, alpha / 4) for counts in self._counts
        )
        return self._between(control, treatment)

    def detectable(self, alpha: float, times: float = 1.0) -> float | None:
        """The distance from a limit at which the true difference is told from it with probability POWER at
        least, at a look after `times` as many predictions, if the distributions stay as they are. None while
        that is not possible."""
        if not all(map(sum, self._counts)):
            return None
        # The bounds of the two arms are independent of each other.
        control, treatment = (
            reached_bounds(EDGES, counts, self._metric.quantile, alpha / 4, math.sqrt(POWER), times)
            for counts in self._counts
        )
        reached, now = self._between(control, treatment), self._change(*self.quantiles)
        found = reached.upper - now if self._metric.lower_is_better else now - reached.lower
        return found if math.isfinite(found) else None

    def times_needed(self, alpha: float, distance: float) -> float | None:
        """How many times as many predictions make `distance` detectable, to 1 %, at least 1; None if
        MOST_TIMES do not."""

        def enough(times: float) -> bool:
            found = self.detectable(alpha, times)
            return found is not None and found <= distance

        low = high = 1.0
        while not enough(high):
            low, high = high, 2 * high
            if high > MOST_TIMES or distance <= 0:
                return None
        while high > 1.01 * low:
            middle = (low + high) / 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high

    def _between(self, control: Interval, treatment: Interval) -> Interval:
        return Interval(
            self._change(control.upper, treatment.lower), self._change(control.lower, treatment.upper)
        )

    def _change(self, control: float, treatment: float) -> float:
        if not self._metric.relative:
            return treatment - control
        if control == 0:
            return math.inf
        return -1.0 if math.isinf(control) else treatment / control - 1


def _quantile(counts: list[int], q: float) -> float:
    """The upper edge of the bin that holds the quantile; 0 without values."""
    needed = math.ceil(q * sum(counts))
    for edge, below in zip(EDGES, accumulate(counts), strict=True):
        if needed and below >= needed:
            return edge
    return 0.0
