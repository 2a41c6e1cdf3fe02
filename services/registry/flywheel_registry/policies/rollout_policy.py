"""The rollout policy of a model: its shadow and canary steps, their bounds and durations."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise

from flywheel_registry.policies.errors import InvalidPolicy

DEFAULT_CANARY_PERCENTS = (5.0, 20.0, 100.0)
DEFAULT_ALPHA = 0.05
LONGEST_SECONDS = 10 * 366 * 86_400.0
"""Longest duration that a policy may set: ten years."""


@dataclass(frozen=True, slots=True)
class RolloutPolicy:
    """The steps by which a challenger replaces the champion.

    The fields are those of `registry.v1.RolloutPolicy`; durations are seconds of event time.
    """

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
        """The canary steps in percent of subjects, with the default applied."""
        return self.canary_percents or DEFAULT_CANARY_PERCENTS

    @property
    def shadow_share(self) -> float:
        """The percentage of requests copied to the challenger in shadow, with the default applied."""
        return self.shadow_percent or 100.0

    @property
    def level(self) -> float:
        """Significance level of the one-sided bounds, with the default applied."""
        return self.alpha or DEFAULT_ALPHA

    def check(self) -> RolloutPolicy:
        """Return the policy itself. Raises InvalidPolicy that names the first wrong field."""
        numbers = asdict(self)
        for name, value in numbers.items():
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, float) and not math.isfinite(number):
                    raise InvalidPolicy(f"rollout_policy.{name} is not a finite number: use a finite number.")
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
