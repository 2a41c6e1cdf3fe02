"""The rollout policy of a model: its steps, their bounds and their durations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

from flywheel_registry.policies.errors import InvalidPolicy

DEFAULT_CANARY_PERCENTS = (5.0, 20.0, 100.0)
DEFAULT_ALPHA = 0.05
DEFAULT_LOAD_SECONDS = 600.0
"""How long gateways may take to load a challenger."""
DEFAULT_MAX_STEP_SECONDS = 30 * 86_400.0
LONGEST_SECONDS = 10 * 366 * 86_400.0
"""Longest duration that a policy may set: ten years."""


@dataclass(frozen=True, slots=True)
class StepOverride:
    """What one step does differently from its policy; None keeps the policy's value. `percent` 0 is
    shadow."""

    percent: float
    min_bake_seconds: float | None = None
    min_wall_bake_seconds: float | None = None
    max_step_seconds: float | None = None
    min_samples: int | None = None
    max_log_loss_delta: float | None = None
    max_error_rate: float | None = None
    max_p99_ms: float | None = None
    max_score_shift: float | None = None


@dataclass(frozen=True, slots=True)
class StepPolicy:
    """The rules of one step. `percent` 0 is shadow.

    `min_bake_seconds` is event time, `min_wall_bake_seconds` and `max_step_seconds` are wall time without
    pauses. `min_samples` counts labelled rows in shadow and answers of the challenger in canary. A limit of 0
    for errors, latency or score shift means no guardrail.

    `pass_level` and `breach_level` are the significance levels of passing and of a breach: a challenger at
    the limit passes shadow with at most `alpha`, and is withdrawn with at most that in all its steps
    together, so each step gets an equal part of it.
    """

    percent: float
    min_bake_seconds: float
    min_wall_bake_seconds: float
    max_step_seconds: float
    min_samples: int
    max_log_loss_delta: float
    max_error_rate: float
    max_p99_ms: float
    max_score_shift: float
    pass_level: float
    breach_level: float


@dataclass(frozen=True, slots=True)
class RolloutPolicy:
    """The steps by which a challenger replaces the champion.

    The fields are those of `registry.v1.RolloutPolicy`. `min_bake_seconds` is event time, all other durations
    are wall time without pauses.
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
    min_wall_bake_seconds: float | None = None
    load_timeout_seconds: float | None = None
    steps: tuple[StepOverride, ...] = ()
    until_verdict: bool = False

    @property
    def percents(self) -> tuple[float, ...]:
        """The canary steps in percent of subjects, with the default applied."""
        return self.canary_percents or DEFAULT_CANARY_PERCENTS

    @property
    def shadow_share(self) -> float:
        """The percentage of requests copied to the challenger in shadow, with the default applied."""
        return self.shadow_percent or 100.0

    @property
    def load_seconds(self) -> float:
        """How long gateways may take to load the challenger, with the default applied."""
        return self.load_timeout_seconds or DEFAULT_LOAD_SECONDS

    @property
    def level(self) -> float:
        """The significance level, with the default applied."""
        return self.alpha or DEFAULT_ALPHA

    def step(self, percent: float) -> StepPolicy:
        """Return the rules of a step; `percent` 0 is shadow."""
        shadow = percent == 0
        wall = self.min_wall_bake_seconds
        rules: dict[str, Any] = {
            "min_bake_seconds": self.min_bake_seconds,
            "min_wall_bake_seconds": self.min_bake_seconds if wall is None else wall,
            "max_step_seconds": self.max_step_seconds or DEFAULT_MAX_STEP_SECONDS,
            "min_samples": self.shadow_min_labelled if shadow else self.canary_min_predictions,
            "max_log_loss_delta": self.shadow_max_log_loss_delta
            if shadow
            else self.canary_max_log_loss_delta,
            "max_error_rate": self.max_error_rate,
            "max_p99_ms": self.max_p99_ms,
            "max_score_shift": self.max_score_shift,
        }
        for override in self.steps:
            if override.percent == percent:
                rules |= {name: value for name, value in asdict(override).items() if value is not None}
                if override.min_wall_bake_seconds is None and wall is None:
                    rules["min_wall_bake_seconds"] = rules["min_bake_seconds"]
        breach_level = self.level / (1 + len(self.percents))
        return StepPolicy(**{**rules, "percent": percent}, pass_level=self.level, breach_level=breach_level)

    def check(self) -> RolloutPolicy:
        """Return the policy itself. Raises InvalidPolicy that names the first wrong field."""
        for name, number in _numbers(self):
            if not math.isfinite(number):
                raise InvalidPolicy(f"rollout_policy.{name} is not a finite number: use a finite number.")
            if number < 0 and "log_loss_delta" not in name:
                raise InvalidPolicy(f"rollout_policy.{name} must not be negative.")
            if name.endswith("_seconds") and number > LONGEST_SECONDS:
                raise InvalidPolicy(
                    f"rollout_policy.{name.removesuffix('_seconds')} must not exceed ten years."
                )
        self._check_percents()
        if not 0 <= self.alpha < 0.5:
            raise InvalidPolicy(f"rollout_policy.alpha {self.alpha:g} must lie in [0, 0.5).")
        known = {0.0, *self.percents}
        for override in self.steps:
            if override.percent not in known:
                raise InvalidPolicy(
                    f"rollout_policy.steps names {override.percent:g} %, which is no step: use 0 for shadow "
                    "or a value of canary_percents."
                )
        if len({override.percent for override in self.steps}) < len(self.steps):
            raise InvalidPolicy("rollout_policy.steps names a step twice: join its values in one entry.")
        for step in map(self.step, sorted(known)):
            if step.max_step_seconds < max(step.min_wall_bake_seconds, 1e-9):
                raise InvalidPolicy(
                    f"rollout_policy.max_step of the step at {step.percent:g} % must be positive and at "
                    "least its min_wall_bake."
                )
        return self

    def _check_percents(self) -> None:
        steps = self.percents
        if self.until_verdict:
            if len(steps) != 1 or not 0 < steps[0] < 100:
                raise InvalidPolicy(
                    f"rollout_policy.canary_percents {list(steps)} must be one split within (0, 100) for an "
                    "A/B test (until_verdict)."
                )
        elif (
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


def _numbers(policy: RolloutPolicy) -> Iterator[tuple[str, float]]:
    """Yield the names and values of all numbers of a policy and its steps."""
    parts: list[tuple[str, RolloutPolicy | StepOverride]] = [("", policy)]
    parts += [(f"steps[{i}].", override) for i, override in enumerate(policy.steps)]
    for prefix, part in parts:
        for field in fields(part):
            value = getattr(part, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int | float):
                    yield f"{prefix}{field.name}", float(number)
