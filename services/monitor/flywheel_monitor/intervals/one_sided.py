"""One-sided bounds of means and rates that hold at all looks together.

A step of a rollout is looked at with every tick. A bound for a fixed number of rows is wrong far more often
than its level when it is looked at repeatedly; these are wrong at any time with at most that probability.

* Means: the one-sided normal mixture boundary of Howard, Ramdas, McAuliffe and Sekhon (2021, "Time-uniform,
  nonparametric, nonasymptotic confidence sequences", equation 14), with the standard error estimated from the
  rows. Like every bound with an estimated error it is asymptotic, so it needs a least number of rows.
* Rates: a mixture of likelihood ratios against rates above the limit, an e-process; exact for any number of
  answers. Ville's inequality: it exceeds 1 / level with at most the probability `level`.
"""

from __future__ import annotations

import math

_ODDS = (1.25, 1.5, 2.0, 3.0, 5.0, 9.0, 19.0)
"""Alternatives of the mixture: rates whose odds are this many times those of the limit."""
_TIGHTEST = 8.0
"""The boundary is tightest, relative to a fixed one, at this many times its tuning parameter."""


def half_width(n: float, level: float, tightest_at: float) -> float:
    """The distance of a one-sided bound in standard errors after `n` rows.

    `tightest_at` is the number of rows at which the bound is tuned to be tightest.
    """
    rho = max(tightest_at, 1.0) / _TIGHTEST
    return math.sqrt(2 * (n + rho) / n * math.log(math.sqrt((n + rho) / rho) / (2 * level) + 1))


def exceeds_rate(count: int, n: int, limit: float, level: float) -> bool:
    """Whether `count` of `n` refutes, at all looks together, that the rate is at most `limit` (0 to 1)."""
    if limit >= 1 or count <= 0:
        return False
    ratios = []
    for odds in _ODDS:
        rate = odds * limit / (1 - limit + odds * limit)
        ratios.append(count * math.log(rate / limit) + (n - count) * math.log((1 - rate) / (1 - limit)))
    largest = max(ratios)
    evidence = largest + math.log(sum(math.exp(ratio - largest) for ratio in ratios) / len(ratios))
    return evidence > -math.log(level)
