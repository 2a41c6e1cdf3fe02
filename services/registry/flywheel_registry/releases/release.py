"""A release: the immutable bundle that serves, a version with calibration, threshold and fallback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Platt:
    """Platt scaling on logits: p = 1 / (1 + exp(-(slope * logit(score) + intercept)))."""

    slope: float
    intercept: float


@dataclass(frozen=True, slots=True)
class Isotonic:
    """Isotonic calibration: piecewise linear through (x, y), constant outside."""

    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, slots=True)
class Release:
    """A release of a model; `number` is 0 before it is created.

    `version` is the number of a version of the same model. `calibration` None means identity, `default_score`
    None no default answer, `cached_max_age_seconds` None no cached answers.
    """

    model: str
    version: int
    number: int = 0
    feature_set: str = ""
    calibration: Platt | Isotonic | None = None
    threshold: float = 0.0
    default_score: float | None = None
    cached_max_age_seconds: float | None = None
    has_fallback: bool = False
    segment_keys: Sequence[str] = ()
    created_at: datetime | None = None
    created_by: str = ""

    @property
    def name(self) -> str:
        """The full resource name."""
        return f"{self.model}/releases/{self.number}"
