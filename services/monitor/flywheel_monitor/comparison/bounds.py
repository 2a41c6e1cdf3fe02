"""One-sided confidence bounds of a difference of means, from Student's t."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import stdtrit


@dataclass(frozen=True)
class Moments:
    """n numbers by their sum and the sum of their squares."""

    n: int
    total: float
    squared: float

    @property
    def mean(self) -> float:
        return self.total / self.n if self.n else 0.0

    @property
    def variance(self) -> float:
        """The unbiased variance; n must be at least 2."""
        return max(0.0, (self.squared - self.total * self.total / self.n) / (self.n - 1))


@dataclass(frozen=True)
class Bounds:
    """A difference, its one-sided bounds at one look, and its standard error. With too few rows bounds and
    error are infinite."""

    delta: float = 0.0
    lower: float = -math.inf
    upper: float = math.inf
    error: float = math.inf


def paired(differences: Moments, alpha: float) -> Bounds:
    """Mean of paired differences, with each bound at level 1 - alpha."""
    n = differences.n
    if n < 2:
        return Bounds(differences.mean)
    error = math.sqrt(differences.variance / n)
    margin = float(stdtrit(n - 1, 1 - alpha)) * error
    return Bounds(differences.mean, differences.mean - margin, differences.mean + margin, error)


def welch(challenger: Moments, champion: Moments, alpha: float) -> Bounds:
    """Difference of the means of independent samples with unequal variances (Welch 1947),
    Welch-Satterthwaite degrees of freedom."""
    n, m = challenger.n, champion.n
    delta = challenger.mean - champion.mean
    if n < 2 or m < 2:
        return Bounds(delta if n and m else 0.0)
    a, b = challenger.variance / n, champion.variance / m
    if a + b == 0:
        return Bounds(delta, delta, delta, 0.0)
    freedom = (a + b) ** 2 / (a * a / (n - 1) + b * b / (m - 1))
    error = math.sqrt(a + b)
    margin = float(stdtrit(freedom, 1 - alpha)) * error
    return Bounds(delta, delta - margin, delta + margin, error)
