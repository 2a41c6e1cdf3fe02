"""The route of a model: its champion, its challenger with canary and shadow percentages, and variants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from flywheel_inference.releases.rollout_step import NO_ROLLOUT, RolloutStep
from flywheel_inference.routing.canary_assignment import bucket, in_share

CHAMPION, CHALLENGER, SHADOW = 1, 2, 3
"""Roles of an answer: numbers of events.v1.PredictionRole."""

R = TypeVar("R")
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Variant(Generic[R]):
    """A release beside champion and challenger. It answers `percent` of the subjects that no variant before
    it has, and gets copies of `shadow_percent` of the requests that another release answers."""

    name: str
    release: R
    percent: float = 0.0
    shadow_percent: float = 0.0

    def with_release(self, release: S) -> Variant[S]:
        """The same shares of another release."""
        return Variant(self.name, release, self.percent, self.shadow_percent)


@dataclass(frozen=True, slots=True)
class Choice(Generic[R]):
    """The release that answers a request. `challenger`: it is not the champion. `step`: the step of the
    rollout, or the variant, that its rows belong to. Each of `shadows` (release, step) gets a copy, whose
    answer is only logged."""

    release: R
    challenger: bool
    step: RolloutStep = NO_ROLLOUT
    shadows: tuple[tuple[R, RolloutStep], ...] = ()


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
    variants: tuple[Variant[R], ...] = ()

    @property
    def releases(self) -> tuple[R, ...]:
        """Every release of the route."""
        found = (self.champion, self.challenger, *(variant.release for variant in self.variants))
        return tuple(release for release in found if release is not None)

    @property
    def champion_alone(self) -> bool:
        """Whether the champion answers every request, without copies."""
        return self.challenger is None and not self.variants

    @property
    def step(self) -> RolloutStep:
        """The step of the active rollout."""
        return RolloutStep(self.rollout, self.generation) if self.rollout else NO_ROLLOUT

    def choose(self, subject: str) -> Choice[R]:
        """The release that answers a subject; the same one as long as the percentages do not change.

        The first variant with the subject in its share answers, else the challenger, else the champion. A
        subject of a variant is in no rollout.
        """
        chosen: Choice[R] | None = None
        shadows: list[tuple[R, RolloutStep]] = []
        for variant in self.variants:
            step = RolloutStep(f"{self.model}/variants/{variant.name}", self.generation)
            subject_bucket = bucket(step.rollout, subject)
            if chosen is None and in_share(subject_bucket, variant.percent):
                chosen = Choice(variant.release, variant.release is not self.champion, step)
            elif in_share(subject_bucket, variant.shadow_percent):
                shadows.append((variant.release, step))
        if chosen is None:
            chosen = self._in_rollout(subject)
        copies = (*chosen.shadows, *shadows)
        return Choice(
            chosen.release,
            chosen.challenger,
            chosen.step,
            tuple((release, step) for release, step in copies if release is not chosen.release),
        )

    def forced(self, name: str) -> Choice[R] | None:
        """The release of a variant: champion, challenger or the name of one; None: there is none. Its answers
        belong to no rollout and no variant, because their subjects were not assigned by chance."""
        releases: dict[str, R | None] = {variant.name: variant.release for variant in self.variants}
        releases |= {"champion": self.champion, "challenger": self.challenger}
        release = releases.get(name)
        return Choice(release, release is not self.champion) if release is not None else None

    def _in_rollout(self, subject: str) -> Choice[R]:
        challenger = self.challenger
        if challenger is None or (self.challenger_percent <= 0 and self.shadow_percent <= 0):
            return Choice(self.champion, False, self.step)
        subject_bucket = bucket(self.rollout, subject)
        if in_share(subject_bucket, self.challenger_percent):
            return Choice(challenger, True, self.step)
        copied = in_share(subject_bucket, self.shadow_percent)
        return Choice(self.champion, False, self.step, ((challenger, self.step),) if copied else ())
