"""The route of a model: its champion, and its challenger with canary and shadow percentages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from flywheel_inference.releases.rollout_step import NO_ROLLOUT, RolloutStep
from flywheel_inference.routing.canary_assignment import bucket, in_share

CHAMPION, CHALLENGER, SHADOW = 1, 2, 3
"""Roles of an answer: numbers of events.v1.PredictionRole."""

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Choice(Generic[R]):
    """The release that answers a request. `shadow` gets a copy of the request; its answer is only logged."""

    release: R
    challenger: bool
    shadow: R | None


@dataclass(frozen=True, slots=True)
class Route(Generic[R]):
    """Routing of one model in one generation. A request reads it once and so never mixes generations."""

    model: str
    generation: int
    champion: R
    challenger: R | None = None
    rollout: str = ""
    shadow_percent: float = 0.0
    challenger_percent: float = 0.0

    @property
    def step(self) -> RolloutStep:
        """The step of the active rollout."""
        return RolloutStep(self.rollout, self.generation) if self.rollout else NO_ROLLOUT

    def choose(self, subject: str) -> Choice[R]:
        """The release that answers a subject; the same one as long as the percentages do not change."""
        challenger = self.challenger
        if challenger is None or (self.challenger_percent <= 0 and self.shadow_percent <= 0):
            return Choice(self.champion, False, None)
        subject_bucket = bucket(self.rollout, subject)
        if in_share(subject_bucket, self.challenger_percent):
            return Choice(challenger, True, None)
        copied = in_share(subject_bucket, self.shadow_percent)
        return Choice(self.champion, False, challenger if copied else None)
