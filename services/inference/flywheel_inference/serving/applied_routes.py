"""Application of generations: a model's route is replaced at once, when every release it needs is ready.

Until then the old route serves, also when a release cannot be decoded. A model without a route gets its new
champion alone as soon as that is ready; its generation counts as applied only when the challenger is ready
too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flywheel_inference.routing.route import Route
from flywheel_inference.scoring.scorer import ReleaseScorer
from flywheel_inference.serving.desired_state import DesiredModel, Undecodable
from flywheel_inference.serving.tracked_release import ReleaseKey, TrackedRelease


@dataclass(frozen=True, slots=True)
class AppliedRoutes:
    """Routes by model, and the generation applied completely by model (0: only a part of it is applied)."""

    routes: Mapping[str, Route[ReleaseScorer]] = field(default_factory=dict)
    generations: Mapping[str, int] = field(default_factory=dict)

    def differs_from(self, other: AppliedRoutes) -> bool:
        """Whether a generation changed, or a model got or lost its route."""
        return self.generations != other.generations or self.routes.keys() != other.routes.keys()


def apply_desired(
    applied: AppliedRoutes,
    desired: Mapping[str, DesiredModel],
    releases: Mapping[ReleaseKey, TrackedRelease],
) -> AppliedRoutes:
    """The routes after every desired generation whose releases are ready is applied."""
    routes = {model: route for model, route in applied.routes.items() if model in desired}
    generations = {model: number for model, number in applied.generations.items() if model in desired}
    for model, wanted in desired.items():
        if wanted.champion is None:
            routes.pop(model, None)
            generations[model] = wanted.generation
            continue
        if isinstance(wanted.champion, Undecodable):
            continue
        champion = releases[wanted.champion.key]
        undecodable = isinstance(wanted.active_challenger, Undecodable)
        challenger = None
        if wanted.active_challenger is not None and not isinstance(wanted.active_challenger, Undecodable):
            challenger = releases[wanted.active_challenger.key]
        if generations.get(model) == wanted.generation and _serves(routes.get(model), champion, challenger):
            continue
        if not champion.ready:
            continue
        if not undecodable and (challenger is None or challenger.ready):
            routes[model] = _route(wanted, champion, challenger)
            generations[model] = wanted.generation
        elif model not in routes:
            routes[model] = _route(wanted, champion, None)
            generations[model] = 0
    return AppliedRoutes(routes, generations)


def _serves(
    route: Route[ReleaseScorer] | None, champion: TrackedRelease, challenger: TrackedRelease | None
) -> bool:
    """Whether a route has these releases with this content."""
    if route is None or route.champion.spec.key != champion.spec.key:
        return False
    if route.challenger is None or challenger is None:
        return route.challenger is None and challenger is None
    return route.challenger.spec.key == challenger.spec.key


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
