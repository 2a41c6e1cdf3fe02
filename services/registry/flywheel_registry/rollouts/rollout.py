"""A rollout: the guarded replacement of a model's champion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from flywheel_registry.events.lifecycle import RolloutChanged
from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.rollouts.decision import Decision
from flywheel_registry.rollouts.state_machine import Progress


@dataclass(frozen=True, slots=True)
class RolloutStep:
    """One change of a rollout. `evidence` is a number or None, `entered_at` wall time."""

    state: str
    challenger_percent: float
    entered_at: datetime
    reason: str
    evidence: int | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout; `number` is 0 before it is stored.

    `champion` and `challenger` are release numbers. `step_started_at` is event time, None until it is known.
    """

    model: str
    challenger: int
    challenger_version: int
    champion: int | None = None
    number: int = 0
    progress: Progress = field(default_factory=Progress)
    policy: RolloutPolicy = field(default_factory=RolloutPolicy)
    step_started_at: datetime | None = None
    last_decision: Decision | None = None
    reason: str = ""
    history: Sequence[RolloutStep] = ()
    created_at: datetime | None = None
    ended_at: datetime | None = None
    created_by: str = ""

    @property
    def name(self) -> str:
        """The full resource name."""
        return f"{self.model}/rollouts/{self.number}"

    def changed(self, reason: str) -> RolloutChanged:
        """Return the event that reports the rollout's present state."""
        return RolloutChanged(
            model=self.model,
            rollout=self.number,
            state=self.progress.state.value,
            challenger_percent=self.progress.challenger_percent,
            champion=self.champion,
            challenger=self.challenger,
            reason=reason,
        )
