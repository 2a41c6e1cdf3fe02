"""Calibration of a model's raw score to a probability; part of the release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]

EPSILON = 1e-7
"""Raw scores are clipped this far from 0 and 1, where the logit is infinite."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The raw score is the probability."""

    def apply(self, raw: npt.NDArray[Any]) -> Scores:
        """[rows] raw scores → [rows] probabilities."""
        return raw.astype(np.float64)


@dataclass(frozen=True, slots=True)
class Platt:
    """p = 1 / (1 + exp(-(slope * logit(score) + intercept))): Platt 1999, on logits."""

    slope: float
    intercept: float

    def apply(self, raw: npt.NDArray[Any]) -> Scores:
        """[rows] raw scores → [rows] probabilities; NaN stays NaN."""
        p = np.clip(raw.astype(np.float64), EPSILON, 1 - EPSILON)
        return 1.0 / (1.0 + np.exp(-(self.slope * np.log(p / (1 - p)) + self.intercept)))


@dataclass(frozen=True, slots=True)
class Isotonic:
    """Piecewise linear through the points (x, y), constant outside them. x is non-decreasing."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.x or len(self.x) != len(self.y):
            raise ValueError("isotonic calibration needs equally many x and y, at least one")
        if any(b < a for a, b in zip(self.x, self.x[1:], strict=False)):
            raise ValueError("the x of an isotonic calibration must not decrease")

    def apply(self, raw: npt.NDArray[Any]) -> Scores:
        """[rows] raw scores → [rows] probabilities; NaN stays NaN."""
        scores = raw.astype(np.float64)
        return np.where(np.isnan(scores), np.nan, np.interp(scores, self.x, self.y))


Calibration = Identity | Platt | Isotonic
