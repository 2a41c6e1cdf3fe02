"""A release: the immutable bundle that serves, a version with calibration, threshold and fallback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from flywheel_registry.releases.serving_policy import ServingPolicy


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
class Temperature:
    """Temperature scaling: p_k is proportional to p_k ^ (1 / temperature) (Guo et al. 2017)."""

    temperature: float


Calibration = Platt | Isotonic | Temperature


ALLOW, DEFAULT, FAIL = 1, 2, 3
"""Actions of feature policies: the numbers of FeatureAction."""
DefaultValue = bool | int | float | str | list[float] | None
"""Default of an input; a TIMESTAMP is RFC 3339 text."""


@dataclass(frozen=True, slots=True)
class FeaturePolicy:
    """What the model gets for an input that is missing or stale."""

    feature: str
    missing: int = ALLOW
    stale: int = ALLOW
    default: DefaultValue = None


@dataclass(frozen=True, slots=True)
class Release:
    """A release of a model; `number` is 0 before it is created.

    `version` is the number of a version of the same model. `calibration` None means identity, `default_score`
    None and `default_values` () no default answer, `cached_max_age_seconds` None no cached answers.
    `segment_thresholds` maps a segment (`key=value`) to its threshold.
    """

    model: str
    version: int
    number: int = 0
    feature_set: str = ""
    calibration: Calibration | None = None
    threshold: float = 0.0
    default_score: float | None = None
    cached_max_age_seconds: float | None = None
    has_fallback: bool = False
    segment_keys: Sequence[str] = ()
    segment_thresholds: Mapping[str, float] = field(default_factory=dict)
    default_values: Sequence[float] = ()
    feature_policies: Sequence[FeaturePolicy] = ()
    serving: ServingPolicy | None = None
    created_at: datetime | None = None
    created_by: str = ""

    @property
    def name(self) -> str:
        """The full resource name."""
        return f"{self.model}/releases/{self.number}"
