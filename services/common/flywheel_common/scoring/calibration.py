"""Calibration of a model's probabilities; part of the release. Platt and isotonic calibrate BINARY models,
temperature calibrates MULTICLASS models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]

EPSILON = 1e-7
"""Raw scores are clipped this far from 0 and 1, where the logit is infinite."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The output is the answer."""

    def apply(self, raw: npt.NDArray[Any]) -> Scores:
        """[rows, width] output → the same as float64."""
        return raw.astype(np.float64)


@dataclass(frozen=True, slots=True)
class Platt:
    """p = σ(slope * logit(score) + intercept): Platt 1999, on logits. The default is the identity."""

    slope: float = 1.0
    intercept: float = 0.0

    def apply(self, raw: npt.ArrayLike) -> Scores:
        """Raw scores → as many probabilities; NaN stays NaN."""
        return sigmoid(self.slope * logit(raw) + self.intercept)


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

    def apply(self, raw: npt.ArrayLike) -> Scores:
        """Raw scores → as many probabilities; NaN stays NaN."""
        scores = np.asarray(raw, dtype=np.float64)
        return np.where(np.isnan(scores), np.nan, np.interp(scores, self.x, self.y))


@dataclass(frozen=True, slots=True)
class Temperature:
    """p_k is proportional to p_k ^ (1 / temperature): Guo et al. 2017, on log-probabilities."""

    temperature: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError("the temperature of a calibration must be greater than 0")

    def apply(self, raw: npt.ArrayLike) -> Scores:
        """[rows, classes] probabilities → [rows, classes]; a row without a positive one becomes NaN."""
        with np.errstate(divide="ignore", invalid="ignore"):
            logits = np.log(np.asarray(raw, dtype=np.float64)) / self.temperature
            # The largest logit becomes 0, so that the exponentials do not overflow.
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            probabilities: Scores = powers / powers.sum(axis=1, keepdims=True)
        return probabilities


Calibration = Identity | Platt | Isotonic | Temperature


def logit(scores: npt.ArrayLike) -> Scores:
    """log(p / (1 - p)) with p clipped to [1e-7, 1 - 1e-7]."""
    p = np.clip(np.asarray(scores, dtype=np.float64), EPSILON, 1 - EPSILON)
    return np.log(p) - np.log1p(-p)


def sigmoid(z: Scores) -> Scores:
    """1 / (1 + e^-z) without overflow."""
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1 / (1 + e), e / (1 + e))
