"""Finds rollouts whose evidence does not grow, as with gateways that send no predictions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from flywheel_registry.rollouts.rollout import Rollout

STALL_SECONDS = 3600.0
"""Wall time without new evidence after which a rollout counts as stalled and is reported."""


@dataclass(slots=True)
class _Growth:
    step: int
    count: int
    since: float
    reported: bool = False


class Stalls:
    """How long the evidence of each rollout's step has not grown. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._growth: dict[str, _Growth] = {}

    def note(self, rollout: Rollout, count: int, now: float) -> bool:
        """Note how much evidence a step has; return True once when it is found stalled."""
        known, step = self._growth.get(rollout.name), rollout.progress.step
        if known is None or (known.step, known.count) != (step, count):
            self._growth[rollout.name] = _Growth(step, count, now)
            return False
        if known.reported or now - known.since < STALL_SECONDS:
            return False
        known.reported = True
        return True

    def keep(self, active: Collection[str]) -> None:
        """Forget the rollouts that are not in `active`."""
        self._growth = {name: growth for name, growth in self._growth.items() if name in active}

    def count(self, now: float) -> int:
        """Return how many rollouts are stalled."""
        return sum(now - growth.since >= STALL_SECONDS for growth in self._growth.values())
