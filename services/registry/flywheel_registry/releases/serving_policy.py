"""How a release is served: where its model runs, which requests reach it, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flywheel_registry.releases.errors import InvalidServingPolicy

MAX_INSTANCES = 64
MAX_BATCH_ROWS = 1024
MAX_QUEUE_DELAY_SECONDS = 1.0
MAX_RULES = 16
MAX_VALUES = 1000
MAX_UNIT_LENGTH = 16
KINDS = (0, 1, 2)
"""Numbers of InstanceKind."""


@dataclass(frozen=True, slots=True)
class Placement:
    """How Triton runs the model; 0: the default of the gateway."""

    kind: int = 0
    instances: int = 0
    max_batch_rows: int = 0
    max_queue_delay_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RealTimeRule:
    """A request with such a value of the field is worth a model call."""

    field: str
    minimum: float | None = None
    maximum: float | None = None
    values: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ServingCost:
    """Costs of an answer and of a second of the model."""

    unit: str = ""
    per_answer: float = 0.0
    per_model_second: float = 0.0


@dataclass(frozen=True, slots=True)
class ServingPolicy:
    """`real_time` are the rules of the cost mode; None: every request reaches the model."""

    placement: Placement | None = None
    real_time: Sequence[RealTimeRule] | None = None
    cost: ServingCost | None = None


def check_serving_policy(policy: ServingPolicy, *, has_cached: bool) -> None:
    """Raise InvalidServingPolicy. `has_cached`: the fallback of the release allows cached predictions."""
    if policy.placement is not None:
        _check_placement(policy.placement)
    if policy.real_time is not None:
        if not has_cached:
            raise InvalidServingPolicy("cost_mode needs fallback.cached_max_age: cached predictions answer.")
        if len(policy.real_time) > MAX_RULES:
            raise InvalidServingPolicy(f"cost_mode has more than {MAX_RULES} rules.")
        for rule in policy.real_time:
            _check_rule(rule)
    if policy.cost is not None:
        _check_cost(policy.cost)


def _check_placement(placement: Placement) -> None:
    if placement.kind not in KINDS:
        raise InvalidServingPolicy(f"placement.kind has the unknown number {placement.kind}.")
    if placement.instances > MAX_INSTANCES:
        raise InvalidServingPolicy(f"placement.instance_count {placement.instances} exceeds {MAX_INSTANCES}.")
    if placement.max_batch_rows > MAX_BATCH_ROWS:
        raise InvalidServingPolicy(
            f"placement.max_batch_rows {placement.max_batch_rows} exceeds {MAX_BATCH_ROWS}."
        )
    if not 0 <= placement.max_queue_delay_seconds <= MAX_QUEUE_DELAY_SECONDS:
        raise InvalidServingPolicy("placement.max_queue_delay must lie in 0 s to 1 s.")


def _check_rule(rule: RealTimeRule) -> None:
    bounds = [bound for bound in (rule.minimum, rule.maximum) if bound is not None]
    if not rule.field or not (bounds or rule.values):
        raise InvalidServingPolicy(
            f"The rule for {rule.field[:80]!r} needs a field, and a bound or values of it."
        )
    if not all(map(math.isfinite, bounds)) or bounds != sorted(bounds):
        raise InvalidServingPolicy(f"The bounds of the rule for {rule.field[:80]} are no range.")
    if len(rule.values) > MAX_VALUES:
        raise InvalidServingPolicy(f"The rule for {rule.field[:80]} has more than {MAX_VALUES} values.")


def _check_cost(cost: ServingCost) -> None:
    if len(cost.unit) > MAX_UNIT_LENGTH:
        raise InvalidServingPolicy(f"cost.unit has more than {MAX_UNIT_LENGTH} characters.")
    if not all(math.isfinite(price) and price >= 0 for price in (cost.per_answer, cost.per_model_second)):
        raise InvalidServingPolicy("The costs must be finite and not negative.")
