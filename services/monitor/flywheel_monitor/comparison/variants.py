"""Comparison of a challenger with the champion, from counts and sums.

A shadow predicted the same requests as the champion, so losses are paired and their difference has little
variance. A canary served its own subjects, so means are compared. The loss is the log-loss, for REGRESSION
the squared error; a VECTOR output has none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flywheel_monitor.comparison.bounds import Bounds, Moments, paired, welch
from flywheel_monitor.performance.quality import Quality, quality
from flywheel_monitor.performance.rates import error_rate
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.histograms import LATENCY_EDGES_MS, quantile
from flywheel_monitor.windows.layout import Extra, Sums

LARGEST_SHIFT = 1e6


@dataclass(frozen=True)
class Variant:
    """Statistics of one variant; see `VariantStatistics` of the API."""

    predictions: int
    error_rate: float
    latency_p99_ms: float
    score_mean: float
    score_stddev: float
    cost_mean: float | None
    quality: Quality

    @property
    def labelled(self) -> int:
        return self.quality.labelled


@dataclass(frozen=True)
class Comparison:
    """Both variants and their differences; see `CompareVariantsResponse` of the API."""

    champion: Variant
    challenger: Variant
    labelled: int
    loss: Bounds
    disagreement_rate: float | None
    score_shift: float
    scored: tuple[int, int] = (0, 0)
    """Rows of champion and challenger that the score shift was computed from."""
    score_difference: float | None = None
    right: tuple[int, int] = (0, 0)
    """Requests in which only the champion, and only the challenger, was right."""


def describe(window: WindowCounts) -> Variant:
    """The statistics of one variant."""
    mean, stddev = window.score_moments()
    return Variant(
        predictions=window.predictions,
        error_rate=error_rate(window.failures, window.predictions),
        latency_p99_ms=quantile(LATENCY_EDGES_MS, window.latencies, 0.99),
        score_mean=mean,
        score_stddev=stddev,
        cost_mean=window.cost_mean(),
        quality=quality(window),
    )


def compare(champion: WindowCounts, challenger: WindowCounts, *, is_paired: bool, alpha: float) -> Comparison:
    """Both variants, and the difference of their losses (challenger - champion)."""
    a, b = describe(champion), describe(challenger)
    if is_paired:
        pairs, labelled = challenger.counted(Extra.PAIRED), challenger.counted(Extra.PAIRS_LABELLED)
        deltas = _moments(challenger, labelled, Sums.PAIR_LOSS_DELTA, Sums.PAIR_LOSS_DELTA_SQUARED)
        scores = _moments(challenger, pairs, Sums.PAIR_CHAMPION_SCORE, Sums.PAIR_CHAMPION_SQUARED)
        shadow_mean = challenger.total(Sums.PAIR_SHADOW_SCORE) / pairs if pairs else 0.0
        disagreement = challenger.counted(Extra.DISAGREED) / pairs if pairs else None
        shift = score_shift(scores, shadow_mean, pairs)
        return Comparison(
            a,
            b,
            labelled,
            paired(deltas, alpha),
            disagreement,
            shift,
            (pairs, pairs),
            shadow_mean - scores.mean if pairs else None,
            challenger.right,
        )
    if not champion.layout.output.same(challenger.layout.output):
        return Comparison(a, b, 0, Bounds(), None, 0.0)
    losses, champion_losses = (
        _moments(w, w.labelled, Sums.LOSS, Sums.LOSS_SQUARED) for w in (challenger, champion)
    )
    scores = _moments(champion, champion.scored, Sums.SCORE, Sums.SCORE_SQUARED)
    shift = score_shift(scores, b.score_mean, challenger.scored)
    labelled, scored = min(a.labelled, b.labelled), (champion.scored, challenger.scored)
    return Comparison(a, b, labelled, welch(losses, champion_losses, alpha), None, shift, scored)


def score_shift(champion: Moments, challenger_mean: float, challenger_rows: int) -> float:
    """|difference of means| in champion standard deviations, at most LARGEST_SHIFT (for a champion with
    constant scores). 0 if the challenger has no scores, or the champion fewer than two."""
    if champion.n < 2 or challenger_rows == 0:
        return 0.0
    difference = abs(challenger_mean - champion.mean)
    spread = math.sqrt(max(0.0, champion.squared / champion.n - champion.mean**2))
    if difference == 0:
        return 0.0
    return min(difference / spread, LARGEST_SHIFT) if spread else LARGEST_SHIFT


def _moments(window: WindowCounts, n: int, total: Sums, squared: Sums) -> Moments:
    return Moments(n, window.total(total), window.total(squared))
