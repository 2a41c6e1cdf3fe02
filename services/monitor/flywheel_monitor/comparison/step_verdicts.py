"""Verdicts on the limits of a rollout's step, valid at all looks at the step together.

They are what a rollout is decided by. The loss can be proven to be within its limit or above it. Error rate,
p99 latency and score shift are guardrails: only a breach is proven.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from flywheel_common.arrays import Ints
from flywheel_monitor.comparison.bounds import Bounds
from flywheel_monitor.comparison.errors import InvalidAlpha, InvalidLimit
from flywheel_monitor.comparison.variants import Comparison
from flywheel_monitor.intervals.one_sided import exceeds_rate, half_width
from flywheel_monitor.intervals.quantiles import quantile_bounds
from flywheel_monitor.performance.rates import error_rate
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.histograms import LATENCY_BINS, LATENCY_EDGES_MS, quantile

MIN_ROWS = 30
"""With fewer rows the normal approximation of a bound is not valid, whatever the limits allow."""


class StepMetric(IntEnum):
    """What has a limit, with the numbers of `StepMetric` of the API."""

    LOSS_DELTA = 1
    ERROR_RATE = 2
    P99_MS = 3
    SCORE_SHIFT = 4


class LimitVerdict(IntEnum):
    """What is proven, with the numbers of `LimitVerdict` of the API."""

    UNDECIDED = 1
    WITHIN = 2
    BREACHED = 3


@dataclass(frozen=True)
class StepLimits:
    """See `StepLimits` of the API; None: no verdict."""

    max_loss_delta: float | None = None
    max_error_rate: float | None = None
    max_p99_ms: float | None = None
    max_score_shift: float | None = None
    pass_alpha: float = 0.05
    breach_alpha: float = 0.05
    tightest_at: int = 0

    def check(self) -> StepLimits:
        """The limits themselves. Raises InvalidLimit, InvalidAlpha."""
        for name in ("pass_alpha", "breach_alpha"):
            if not 0 < getattr(self, name) < 1:
                raise InvalidAlpha(
                    f"limits.{name} is {getattr(self, name):g}: it must lie between 0 and 1.", field="limits"
                )
        if self.max_loss_delta is not None and not math.isfinite(self.max_loss_delta):
            raise InvalidLimit("limits.max_loss_delta must be a finite number.", field="limits")
        for name in ("max_error_rate", "max_p99_ms", "max_score_shift"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < math.inf:
                raise InvalidLimit(
                    f"limits.{name} is {limit:g}: it must be above 0 and finite.", field="limits"
                )
        return self


@dataclass(frozen=True)
class StepCounts:
    """What a step has shown: the challenger's `failures` of `predictions`, its latency histogram, the
    difference of losses over `labelled` rows, and the score shift with the rows and the ratio of the
    standard deviations (challenger / champion) that it is estimated from."""

    predictions: int = 0
    failures: int = 0
    latencies: Ints = field(default_factory=lambda: np.zeros(LATENCY_BINS, np.int64))
    loss: Bounds = field(default_factory=Bounds)
    labelled: int = 0
    score_shift: float = 0.0
    champion_scored: int = 0
    challenger_scored: int = 0
    stddev_ratio: float | None = None


def counts_of(found: Comparison, challenger: WindowCounts) -> StepCounts:
    """What a comparison, and the window of its challenger, has shown."""
    champion_stddev = found.champion.score_stddev
    return StepCounts(
        predictions=challenger.predictions,
        failures=challenger.failures,
        latencies=challenger.latencies,
        loss=found.loss,
        labelled=found.labelled,
        score_shift=found.score_shift,
        champion_scored=found.scored[0],
        challenger_scored=found.scored[1],
        stddev_ratio=found.challenger.score_stddev / champion_stddev if champion_stddev else None,
    )


@dataclass(frozen=True)
class StepVerdict:
    """See `StepVerdict` of the API."""

    metric: StepMetric
    verdict: LimitVerdict
    limit: float
    value: float
    rows: int
    lower: float | None = None
    upper: float | None = None


def step_verdicts(seen: StepCounts, limits: StepLimits) -> list[StepVerdict]:
    """One verdict for each limit that is set."""
    found = []
    if limits.max_loss_delta is not None:
        found.append(_loss(seen, limits, limits.max_loss_delta))
    if limits.max_error_rate is not None:
        found.append(_errors(seen, limits, limits.max_error_rate))
    if limits.max_p99_ms is not None:
        found.append(_latency(seen, limits, limits.max_p99_ms))
    if limits.max_score_shift is not None:
        found.append(_shift(seen, limits, limits.max_score_shift))
    return found


def _loss(seen: StepCounts, limits: StepLimits, limit: float) -> StepVerdict:
    n, delta, error = seen.labelled, seen.loss.delta, seen.loss.error
    if n < MIN_ROWS or math.isinf(error):
        return StepVerdict(StepMetric.LOSS_DELTA, LimitVerdict.UNDECIDED, limit, delta, n)
    tightest = max(limits.tightest_at, MIN_ROWS)
    lower = delta - error * half_width(n, limits.breach_alpha, tightest)
    upper = delta + error * half_width(n, limits.pass_alpha, tightest)
    verdict = LimitVerdict.UNDECIDED
    if lower > limit:
        verdict = LimitVerdict.BREACHED
    elif upper <= limit:
        verdict = LimitVerdict.WITHIN
    return StepVerdict(StepMetric.LOSS_DELTA, verdict, limit, delta, n, lower, upper)


def _errors(seen: StepCounts, limits: StepLimits, limit: float) -> StepVerdict:
    breached = exceeds_rate(seen.failures, seen.predictions, limit, limits.breach_alpha)
    rate = error_rate(seen.failures, seen.predictions)
    return StepVerdict(StepMetric.ERROR_RATE, _guardrail(breached), limit, rate, seen.predictions)


def _latency(seen: StepCounts, limits: StepLimits, limit: float) -> StepVerdict:
    edges, counts = LATENCY_EDGES_MS.tolist(), seen.latencies.tolist()
    lower = quantile_bounds(edges, counts, 0.99, limits.breach_alpha).lower
    value = quantile(LATENCY_EDGES_MS, seen.latencies, 0.99)
    return StepVerdict(StepMetric.P99_MS, _guardrail(lower > limit), limit, value, sum(counts), lower)


def _shift(seen: StepCounts, limits: StepLimits, limit: float) -> StepVerdict:
    a, n, shift = seen.champion_scored, seen.challenger_scored, seen.score_shift
    if min(a, n) < MIN_ROWS or seen.stddev_ratio is None:
        return StepVerdict(StepMetric.SCORE_SHIFT, LimitVerdict.UNDECIDED, limit, shift, n)
    error = math.sqrt(1 / a + seen.stddev_ratio**2 / n)
    lower = shift - error * half_width(n, limits.breach_alpha, max(limits.tightest_at, MIN_ROWS))
    return StepVerdict(StepMetric.SCORE_SHIFT, _guardrail(lower > limit), limit, shift, n, lower)


def _guardrail(breached: bool) -> LimitVerdict:
    return LimitVerdict.BREACHED if breached else LimitVerdict.UNDECIDED
