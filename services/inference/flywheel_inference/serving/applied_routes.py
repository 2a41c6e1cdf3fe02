"""Application of generations: a model's route is replaced at once, when every release it needs is ready.

Until then the old route serves. A model without a route gets its new champion alone as soon as that is ready;
its generation counts as applied only when the challenger is ready too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flywheel_inference.routing.route import Route
from flywheel_inference.scoring.scorer import ReleaseScorer
from flywheel_inference.serving.desired_state import DesiredModel
from flywheel_inference.serving.tracked_release import TrackedRelease


@dataclass(frozen=True, slots=True)
class AppliedRoutes:
    """Routes by model, and the generation applied completely by model (0: only a part of it is applied)."""

    routes: Mapping[str, Route[ReleaseScorer]] = field(default_factory=dict)
    generations: Mapping[str, int] = field(default_factory=dict)

    def differs_from(self, other: AppliedRoutes) -> bool:
        """Whether a generation changed, or a model got or lost its route."""
        return self.generations != other.generations or self.routes.keys() != other.routes.keys()


def apply_desired(
    applied: AppliedRoutes, desired: Mapping[str, DesiredModel], releases: Mapping[str, TrackedRelease]
) -> AppliedRoutes:
    """The routes after every desired generation whose releases are ready is applied."""
    routes = {model: route for model, route in applied.routes.items() if model in desired}
    generations = {model: number for model, number in applied.generations.items() if model in desired}
    for model, wanted in desired.items():
        if wanted.champion is None:
            routes.pop(model, None)
            generations[model] = wanted.generation
            continue
        if generations.get(model) == wanted.generation and model in routes:
            continue
        champion = releases[wanted.champion.name]
        challenger_spec = wanted.active_challenger
        challenger = releases[challenger_spec.name] if challenger_spec is not None else None
        if not champion.ready:
            continue
        if challenger is None or challenger.ready:
            routes[model] = _route(wanted, champion, challenger)
            generations[model] = wanted.generation
        elif model not in routes:
            routes[model] = _route(wanted, champion, None)
            generations[model] = 0
    return AppliedRoutes(routes, generations)


def _route(
    wanted: DesiredModel, champion: TrackedRelease, challenger: TrackedRelease | None
) -> Route[ReleaseScorer]:
    assert champion.scorer is not None
    if challenger is None:
        return Route(model=wanted.model, generation=wanted.generation, champion=champion.scorer)
    return Route(
        model=wanted.model,
        generation=wanted.generation,
        champion=champion.scorer,
        challenger=challenger.scorer,
        rollout=wanted.rollout,
        shadow_percent=wanted.shadow_percent,
        challenger_percent=wanted.challenger_percent,
    )
