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
    about it: no subject differs from another one. `raw` is the value without adjustment, if it has one."""

    value: float
    variance: float
    n: int
    raw: float | None = None

    @property
    def observed(self) -> float:
        return self.value if self.raw is None else self.raw


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
    variance = (
        _variance(n, sums.m, sums.mm) / mean_d**2
        - 2 * _covariance(sums) * mean_m / mean_d**3
        + mean_m**2 * _variance(n, sums.d, sums.dd) / mean_d**4
    )
    return Estimate(float(value), float(variance), n)


def adjusted(control: SubjectSums, treatment: SubjectSums, *, proportions: bool) -> tuple[Estimate, Estimate]:
    """The means of m in both arms, less what d explains: CUPED (Deng, Xu, Kohavi and Walker 2013). d is a
    value of each subject from before the experiment, which the treatment cannot have changed."""
    n = control.n + treatment.n
    both = SubjectSums(
        n,
        *(getattr(control, f) + getattr(treatment, f) for f in ("m", "mm", "d", "dd", "md")),
    )
    known = _variance(n, both.d, both.dd)
    theta = _covariance(both) / known if known and _variance(n, both.m, both.mm) else ZERO
    found = []
    for arm in (control, treatment):
        plain = proportion(arm) if proportions else mean(arm)
        if arm.n < 2:
            found.append(plain)
            continue
        share = arm.m / arm.n
        variance = share * (1 - share) if proportions else _variance(arm.n, arm.m, arm.mm)
        variance += theta**2 * _variance(arm.n, arm.d, arm.dd) - 2 * theta * _covariance(arm)
        value = share - theta * arm.d / arm.n
        found.append(Estimate(float(value), float(variance), arm.n, plain.value))
    return found[0], found[1]


def _covariance(sums: SubjectSums) -> Fraction:
    return (sums.md - sums.m * sums.d / sums.n) / (sums.n - 1) if sums.n > 1 else ZERO


def _variance(n: int, total: Fraction, squares: Fraction) -> Fraction:
    return (squares - total**2 / n) / (n - 1) if n > 1 else ZERO
