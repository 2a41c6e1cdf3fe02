"""Always-valid bounds of a quantile from a histogram.

The bounds are order statistics: the p-quantile Q is above x when too few of n values are at most x. The
number of values at most Q is a sum of n coin flips of probability p (at least p, with ties), so that the
mixture of likelihood ratios against all smaller probabilities is a supermartingale that exceeds 1 / alpha
with at most the probability alpha, at any of all looks (Ville 1939; Robbins 1970; for quantiles Howard and
Ramdas 2022, "Sequential estimation of quantiles with applications to A/B testing and best-arm
identification"). The mixture is a Beta distribution around p, cut off at p. Nothing is asymptotic; the values
must be independent, so that the latencies of one burst count as more than they say.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from statistics import NormalDist

from scipy.special import betainc, betaln

from flywheel_monitor.intervals.differences import Interval

_TUNING = 500.0
"""Pseudo-observations of the mixture; it is tightest at about eight times as many values."""


def log_evidence(count: float, n: float, p: float, *, fewer: bool) -> float:
    """Log of the evidence that successes have a probability below p (`fewer`) or above it, from `count` of
    n."""
    a, b = _TUNING * p, _TUNING * (1 - p)
    after = _log_share(a + count, b + n - count, p, fewer=fewer)
    before = _log_share(a, b, p, fewer=fewer)
    mixture = float(betaln(a + count, b + n - count) - betaln(a, b)) + after - before
    return mixture - count * math.log(p) - (n - count) * math.log1p(-p)


def quantile_bounds(edges: Sequence[float], counts: Sequence[int], p: float, alpha: float) -> Interval:
    """Bounds of the p-quantile of non-negative values, each at level 1 - alpha. `counts` [n] are the values
    up to each upper edge [n] of a bin; the last bin is open."""
    below = list(accumulate(counts))
    return _bounds(edges, below, below, below[-1], p, alpha)


def reached_bounds(
    edges: Sequence[float], counts: Sequence[int], p: float, alpha: float, power: float, times: float = 1.0
) -> Interval:
    """What `quantile_bounds` will reach, each bound with probability `power`, once there are `times` as many
    values of the same distribution: a lower bound that high, an upper bound that low.

    The number of values at most an edge is binomial; its quantiles are those of the normal distribution."""
    n, z = sum(counts) * times, NormalDist().inv_cdf(power)
    below = [times * count for count in accumulate(counts)]
    spreads = [z * math.sqrt(count * (1 - count / n)) if n else 0.0 for count in below]
    most = [min(n, count + spread) for count, spread in zip(below, spreads, strict=True)]
    least = [max(0.0, count - spread) for count, spread in zip(below, spreads, strict=True)]
    return _bounds(edges, most, least, n, p, alpha)


def _bounds(
    edges: Sequence[float],
    most: Sequence[float],
    least: Sequence[float],
    n: float,
    p: float,
    alpha: float,
) -> Interval:
    """The bounds from the number of values up to each edge: `most` decides the lower one, `least` the
    upper one."""
    threshold, inner = -math.log(alpha), range(len(edges) - 1)

    def fits(at: int) -> bool:
        """Whether the quantile is not proven to be above the edge; monotone in the edge."""
        few = most[at] < n * p and log_evidence(most[at], n, p, fewer=True) >= threshold
        return not few

    def covers(at: int) -> bool:
        """Whether the quantile is proven to be at most the edge; monotone in the edge."""
        return least[at] > n * p and log_evidence(least[at], n, p, fewer=False) >= threshold

    first = bisect_left(inner, True, key=fits)
    last = bisect_left(inner, True, key=covers)
    return Interval(
        float(edges[first - 1]) if first else 0.0, float(edges[last]) if last < len(inner) else math.inf
    )


def _log_share(a: float, b: float, p: float, *, fewer: bool) -> float:
    """Log of the share of a Beta(a, b) distribution on one side of p."""
    share = float(betainc(a, b, p) if fewer else betainc(b, a, 1 - p))
    return math.log(share) if share > 0 else -math.inf
