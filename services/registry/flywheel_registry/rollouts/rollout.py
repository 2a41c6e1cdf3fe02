"""A rollout: the guarded replacement of a model's champion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from flywheel_registry.events.lifecycle import RolloutChanged
from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.rollouts.state_machine import Progress, RolloutState
from flywheel_registry.rollouts.verdict import Decision


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

    `champion` and `challenger` are release numbers. `generation` is that of the routing since the present
    step began: predictions of this generation are the step's evidence. `step_started_at` is the event time at
    which that evidence begins, None until it is known. `step_entered_at` is the wall time since which the
    step's clock runs, `step_ran_seconds` what had run before: a pause stops the clock. `alerted_at` is when
    the present step, or pause, was reported to people, None before. `evidence_count` is how many predictions
    of the challenger the step had when it was judged last, `evidence_grew_at` the wall time at which that
    number changed last, None while it is 0.
    """

    model: str
    challenger: int
    challenger_version: int
    champion: int | None = None
    number: int = 0
    progress: Progress = field(default_factory=Progress)
    policy: RolloutPolicy = field(default_factory=RolloutPolicy)
    generation: int = 0
    step_started_at: datetime | None = None
    step_entered_at: datetime | None = None
    step_ran_seconds: float = 0.0
    alerted_at: datetime | None = None
    evidence_count: int = 0
    evidence_grew_at: datetime | None = None
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

    def step_seconds(self, now: datetime) -> float:
        """Return the wall time that the present step has lasted, without pauses."""
        if self.progress.state is RolloutState.PAUSED or self.step_entered_at is None:
            return self.step_ran_seconds
        return self.step_ran_seconds + max(0.0, (now - self.step_entered_at).total_seconds())

    def changed(self, reason: str, *, alert: bool = False) -> RolloutChanged:
        """Return the event that reports the rollout's present state."""
        return RolloutChanged(
            model=self.model,
            rollout=self.number,
            state=self.progress.state.value,
            challenger_percent=self.progress.challenger_percent,
            champion=self.champion,
            challenger=self.challenger,
            reason=reason,
            alert=alert,
        )
