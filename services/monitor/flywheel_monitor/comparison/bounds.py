"""One-sided confidence bounds of a difference of means, from Student's t."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import stdtrit

from flywheel_common.arrays import Floats


@dataclass(frozen=True)
class Bounds:
    """A difference and its one-sided bounds. With too few rows the bounds are infinite."""

    delta: float = 0.0
    lower: float = -math.inf
    upper: float = math.inf


def paired(difference: Floats, alpha: float) -> Bounds:
    """Mean of [n] paired differences, with each bound at level 1 - alpha."""
    n = len(difference)
    if n < 2:
        return Bounds(float(difference.mean()) if n else 0.0)
    mean = float(difference.mean())
    margin = float(stdtrit(n - 1, 1 - alpha)) * float(difference.std(ddof=1)) / math.sqrt(n)
    return Bounds(mean, mean - margin, mean + margin)


def welch(challenger: Floats, champion: Floats, alpha: float) -> Bounds:
    """Difference of the means of independent samples with unequal variances (Welch 1947),
    Welch-Satterthwaite degrees of freedom."""
    n, m = len(challenger), len(champion)
    delta = (float(challenger.mean()) if n else 0.0) - (float(champion.mean()) if m else 0.0)
    if n < 2 or m < 2:
        return Bounds(delta if n and m else 0.0)
    a, b = float(challenger.var(ddof=1)) / n, float(champion.var(ddof=1)) / m
    if a + b == 0:
        return Bounds(delta, delta, delta)
    freedom = (a + b) ** 2 / (a * a / (n - 1) + b * b / (m - 1))
    margin = float(stdtrit(freedom, 1 - alpha)) * math.sqrt(a + b)
    return Bounds(delta, delta - margin, delta + margin)
