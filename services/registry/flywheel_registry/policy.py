"""Policies as values: what must hold before a version moves up, and how a challenger is brought in."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Any

from flywheel_common.errors import InvalidArgument

DEFAULT_CANARY_PERCENTS = (5.0, 20.0, 100.0)
DEFAULT_ALPHA = 0.05
LONGEST_SECONDS = 10 * 366 * 86_400.0
"""Longest duration of a policy: ten years."""


class InvalidPolicy(InvalidArgument):
    reason = "INVALID_POLICY"


@dataclass(frozen=True, slots=True)
class MetricThreshold:
    """Inclusive bounds on one metric; deltas are challenger minus champion."""

    metric: str
    min: float | None = None
    max: float | None = None
    min_delta: float | None = None
    max_delta: float | None = None


@dataclass(frozen=True, slots=True)
class GatePolicy:
    """The offline gate, NONE → STAGING."""

    offline: tuple[MetricThreshold, ...] = ()
    min_evaluation_rows: int = 0

    def check(self) -> GatePolicy:
        """Itself. Raises InvalidPolicy naming the first field that is wrong."""
        for threshold in self.offline:
            if not threshold.metric:
                raise InvalidPolicy("A threshold of gate_policy.offline names no metric: set `metric`.")
            bounds = (threshold.min, threshold.max, threshold.min_delta, threshold.max_delta)
            if all(bound is None for bound in bounds):
                raise InvalidPolicy(
                    f"The threshold on {threshold.metric!r} has no bound: set min, max, min_delta or max_delta."
                )
            if any(bound is not None and not math.isfinite(bound) for bound in bounds):
                raise InvalidPolicy(
                    f"The threshold on {threshold.metric!r} has a bound that is not a finite number."
                )
        return self


@dataclass(frozen=True, slots=True)
class RolloutPolicy:
    """How a challenger is brought in; the fields are those of `registry.v1.RolloutPolicy`, durations in seconds of event time."""

    canary_percents: tuple[float, ...] = ()
    shadow_percent: float = 0.0
    shadow_min_labelled: int = 0
    shadow_max_log_loss_delta: float = 0.0
    min_bake_seconds: float = 0.0
    canary_min_predictions: int = 0
    canary_max_log_loss_delta: float = 0.0
    max_error_rate: float = 0.0
    max_p99_ms: float = 0.0
    max_score_shift: float = 0.0
    max_step_seconds: float | None = None
    alpha: float = 0.0

    @property
    def percents(self) -> tuple[float, ...]:
        return self.canary_percents or DEFAULT_CANARY_PERCENTS

    @property
    def shadow_share(self) -> float:
        return self.shadow_percent or 100.0

    @property
    def level(self) -> float:
        """Significance level of the one-sided bounds."""
        return self.alpha or DEFAULT_ALPHA

    def check(self) -> RolloutPolicy:
        """Itself. Raises InvalidPolicy naming the first field that is wrong."""
        numbers = asdict(self)
        for name, value in numbers.items():
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, float) and not math.isfinite(number):
                    raise InvalidPolicy(f"rollout_policy.{name} is not a finite number.")
        steps = self.percents
        if (
            any(not 0 < p <= 100 for p in steps)
            or any(a >= b for a, b in pairwise(steps))
            or steps[-1] != 100
        ):
            raise InvalidPolicy(
                f"rollout_policy.canary_percents {list(steps)} must rise within (0, 100] and end with 100."
            )
        if not 0 <= self.shadow_percent <= 100:
            raise InvalidPolicy(
                f"rollout_policy.shadow_percent {self.shadow_percent:g} must lie in 0 to 100."
            )
        if not 0 <= self.alpha < 0.5:
            raise InvalidPolicy(f"rollout_policy.alpha {self.alpha:g} must lie in [0, 0.5).")
        for name in ("min_bake_seconds", "max_error_rate", "max_p99_ms", "max_score_shift"):
            if numbers[name] < 0:
                raise InvalidPolicy(f"rollout_policy.{name.removesuffix('_seconds')} must not be negative.")
        if max(self.min_bake_seconds, self.max_step_seconds or 0.0) > LONGEST_SECONDS:
            raise InvalidPolicy("rollout_policy.min_bake and max_step must not exceed ten years.")
        if self.max_step_seconds is not None and self.max_step_seconds < max(self.min_bake_seconds, 1e-9):
            raise InvalidPolicy("rollout_policy.max_step must be positive and at least min_bake.")
        return self


@dataclass(frozen=True, slots=True)
class Policies:
    """Both policies of a model."""

    gate: GatePolicy = field(default_factory=GatePolicy)
    rollout: RolloutPolicy = field(default_factory=RolloutPolicy)


def gate_to_dict(policy: GatePolicy) -> dict[str, Any]:
    """For storage."""
    return asdict(policy)


def gate_from_dict(stored: dict[str, Any]) -> GatePolicy:
    """The inverse of `gate_to_dict`; keys of later versions are ignored."""
    return GatePolicy(
        tuple(MetricThreshold(**_known(MetricThreshold, t)) for t in stored.get("offline", ())),
        int(stored.get("min_evaluation_rows", 0)),
    )


def rollout_to_dict(policy: RolloutPolicy) -> dict[str, Any]:
    """For storage."""
    return asdict(policy)


def rollout_from_dict(stored: dict[str, Any]) -> RolloutPolicy:
    """The inverse of `rollout_to_dict`; keys of later versions are ignored."""
    known = _known(RolloutPolicy, stored)
    return RolloutPolicy(**{**known, "canary_percents": tuple(known.get("canary_percents", ()))})


def _known(kind: type, stored: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in stored.items() if key in kind.__dataclass_fields__}  # type: ignore[attr-defined]


def duration_text(seconds: float) -> str:
    """For reasons that people read: `2 days, 3:00:00`."""
    return str(timedelta(seconds=round(seconds)))
