"""Estimates from sums over subjects: means, proportions and ratios with their variance.

The sums are exact (`Fraction`); a float appears only in the result. The formulas are those of GrowthBook's
statistics engine, gbstats 0.8.0 (`models/statistics.py`), which the tests compare with.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

ZERO = Fraction(0)


@dataclass(frozen=True)
class SubjectSums:
    """Sums over `n` subjects: of a value m, its square, a denominator d, its square, and the product m d."""

    n: int = 0
    m: Fraction = ZERO
    mm: Fraction = ZERO
    d: Fraction = ZERO
    dd: Fraction = ZERO
    md: Fraction = ZERO


@dataclass(frozen=True)
class Estimate:
    """A value of one arm, and n times the variance of its estimator. `variance` 0 says that nothing is known
    about it: no subject differs from another one."""

    value: float
    variance: float
    n: int


def mean(sums: SubjectSums) -> Estimate:
    """The mean of m per subject, with the unbiased variance."""
    if not sums.n:
        return Estimate(0.0, 0.0, 0)
    return Estimate(float(sums.m / sums.n), float(_variance(sums.n, sums.m, sums.mm)), sums.n)


def proportion(sums: SubjectSums) -> Estimate:
    """The share of subjects whose m is 1, where it is 0 for the others; variance p (1 - p)."""
    if not sums.n:
        return Estimate(0.0, 0.0, 0)
    share = sums.m / sums.n
    return Estimate(float(share), float(share * (1 - share)), sums.n)


def ratio(sums: SubjectSums) -> Estimate:
    """Sum of m / sum of d, with the variance of the delta method (Deng, Knoblich and Lu 2018, "Applying the
    delta method in metric analytics", equation 4): subjects are independent, their rows are not."""
    n = sums.n
    if not sums.d or not n:
        return Estimate(0.0, 0.0, n)
    value = sums.m / sums.d
    if n < 2:
        return Estimate(float(value), 0.0, n)
    mean_m, mean_d = sums.m / n, sums.d / n
    covariance = (sums.md - sums.m * sums.d / n) / (n - 1)
    variance = (
        _variance(n, sums.m, sums.mm) / mean_d**2
        - 2 * covariance * mean_m / mean_d**3
        + mean_m**2 * _variance(n, sums.d, sums.dd) / mean_d**4
    )
    return Estimate(float(value), float(variance), n)


def _variance(n: int, total: Fraction, squares: Fraction) -> Fraction:
    return (squares - total**2 / n) / (n - 1) if n > 1 else ZERO
