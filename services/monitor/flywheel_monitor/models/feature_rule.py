"""How one feature is judged, where this differs from the policy of its model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

MAX_RULES = 1_000


class Direction(IntEnum):
    """In which direction a mean has to move to count as drift. Numbers equal `DriftDirection` of the API."""

    BOTH = 1
    UP = 2
    DOWN = 3


@dataclass(frozen=True)
class FeatureRule:
    """See `FeatureRule` of the API. A threshold of 0 is that of the policy. `direction` is a number that
    `Direction` may not have until the policy is checked."""

    feature: str
    psi_warning: float = 0.0
    psi_alert: float = 0.0
    direction: int = Direction.BOTH
    silenced: bool = False
    silenced_until_us: int | None = None

    def silent(self, start_us: int) -> bool:
        """Whether the feature is silenced in a window that begins at this event time."""
        return self.silenced or (self.silenced_until_us is not None and start_us < self.silenced_until_us)

    def counts(self, mean_shift: float | None) -> bool:
        """Whether a move of the mean in this direction counts. Without a mean any move does."""
        if mean_shift is None or self.direction == Direction.BOTH:
            return True
        return mean_shift > 0 if self.direction == Direction.UP else mean_shift < 0

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> FeatureRule:
        return cls(**stored)


def rule_problems(rules: tuple[FeatureRule, ...], psi_warning: float, psi_alert: float) -> list[str]:
    """What is wrong with the rules of a policy with these thresholds."""
    problems = []
    if len(rules) > MAX_RULES:
        problems.append(f"at most {MAX_RULES} feature_rules, found {len(rules)}")
    seen: set[str] = set()
    for rule in rules[:MAX_RULES]:
        name = rule.feature
        if not name:
            problems.append("a feature rule has no feature")
        if name in seen:
            problems.append(f"{name} has two rules")
        seen.add(name)
        if rule.direction not in list(Direction):
            problems.append(f"{name}: unknown direction {int(rule.direction)}")
        if math.inf in (rule.psi_warning, rule.psi_alert):
            problems.append(f"{name}: thresholds must be finite")
        changed = bool(rule.psi_warning or rule.psi_alert)
        if changed and not 0 < (rule.psi_warning or psi_warning) <= (rule.psi_alert or psi_alert):
            problems.append(f"{name}: 0 < psi_warning <= psi_alert must hold")
    return problems
