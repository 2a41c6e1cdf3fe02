"""Always-valid intervals of the difference between two arms.

The interval is the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2024,
"Time-uniform central limit theory and asymptotic confidence sequences", equation 9 of arXiv 2103.06476v7),
that is the normal mixture boundary of Robbins (1970) with an estimated variance, in the form in which gbstats
0.8.0 applies it to two arms (`SequentialTwoSidedTTest`): n is the number of subjects of both, the variance n
times that of the difference. The probability that any of all looks misses the true difference is at most
alpha, half of it on each side. It is asymptotic: MIN_SUBJECTS per arm come before the first look.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from flywheel_monitor.intervals.samples import Estimate

MIN_SUBJECTS = 100
"""Subjects of an arm before its estimates count."""
TUNED_AT = 5_000
"""Subjects of both arms at which the interval is tuned to be tightest."""
POWER = 0.8
"""Probability with which an effect of the detectable size is found."""


@dataclass(frozen=True)
class Difference:
    """Treatment - control, or relative to the control, with its standard error; `n` subjects of both arms.
    `known` is false with too few subjects or without any variance."""

    value: float
    standard_error: float
    n: int
    known: bool = True


@dataclass(frozen=True)
class Interval:
    """Bounds of a difference."""

    lower: float = -math.inf
    upper: float = math.inf

    def reversed(self) -> Interval:
        """The interval of the negative difference."""
        return Interval(-self.upper, -self.lower)


def difference(control: Estimate, treatment: Estimate, *, relative: bool) -> Difference:
    """The difference of two independent estimates. The variance of a relative one is that of the delta
    method; it needs a control that is not 0."""
    n = control.n + treatment.n
    enough = min(control.n, treatment.n) >= MIN_SUBJECTS
    delta = treatment.value - control.value
    if relative and control.observed == 0:
        return Difference(0.0, 0.0, n, known=False)
    if not control.n or not treatment.n:
        return Difference(0.0, 0.0, n, known=False)
    a, b = control.variance / control.n, treatment.variance / treatment.n
    if not relative:
        return Difference(delta, math.sqrt(a + b), n, enough and a + b > 0)
    base = control.observed
    variance = b / base**2 + a * treatment.observed**2 / base**4
    return Difference(delta / base, math.sqrt(variance), n, enough and variance > 0)


def always_valid(found: Difference, alpha: float) -> Interval:
    """The two-sided interval at level 1 - alpha; infinite while nothing is known."""
    if not found.known:
        return Interval()
    width = found.standard_error * standard_errors(found.n, alpha)
    return Interval(found.value - width, found.value + width)


def standard_errors(n: int, alpha: float) -> float:
    """Half the width of the two-sided interval in standard errors, after n subjects."""
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / TUNED_AT
    spread = n * rho2 + 1
    return math.sqrt(2 * spread * math.log(math.sqrt(spread) / alpha) / (n * rho2))


def detectable(found: Difference, alpha: float, n: int | None = None) -> float | None:
    """The distance from a limit at which the true difference is told from it with probability POWER at a look
    after n subjects (default: now). None while nothing is known."""
    if not found.known:
        return None
    later = n or found.n
    error = found.standard_error * math.sqrt(found.n / later)
    return error * (standard_errors(later, alpha) + NormalDist().inv_cdf(POWER))


def subjects_needed(found: Difference, alpha: float, distance: float) -> int | None:
    """The least number of subjects of both arms at which `distance` is detectable; at most 2^40, else
    None."""
    if not found.known or distance <= 0:
        return None
    low, high = 0, found.n
    while (detectable(found, alpha, high) or 0.0) > distance:
        low, high = high, 2 * high
        if high > 2**40:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if (detectable(found, alpha, middle) or 0.0) > distance else (low, middle)
    return high
