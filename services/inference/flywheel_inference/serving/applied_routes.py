"""Application of generations: a model's route is replaced at once, when every release it needs is ready.

Until then the old route serves, also when a release cannot be decoded. A model without a route gets its new
champion alone as soon as that is ready; its generation counts as applied only when the challenger and the
variants are ready too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from flywheel_inference.releases.release import ReleaseSpec
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
        others = [wanted.active_challenger, *(variant.release for variant in wanted.variants)]
        decoded = [releases[r.key] for r in others if r is not None and not isinstance(r, Undecodable)]
        undecodable = any(isinstance(one, Undecodable) for one in others)
        if generations.get(model) == wanted.generation and _serves(routes.get(model), [champion, *decoded]):
            continue
        if not champion.ready:
            continue
        if not undecodable and all(one.ready for one in decoded):
            routes[model] = _route(wanted, releases)
            generations[model] = wanted.generation
        elif model not in routes:
            routes[model] = _route(replace(wanted, challenger=None, variants=()), releases)
            generations[model] = 0
    return AppliedRoutes(routes, generations)


def _serves(route: Route[ReleaseScorer] | None, wanted: Sequence[TrackedRelease]) -> bool:
    """Whether a route has these releases with this content."""
    return route is not None and [r.spec.key for r in route.releases] == [w.spec.key for w in wanted]


def _route(wanted: DesiredModel, releases: Mapping[ReleaseKey, TrackedRelease]) -> Route[ReleaseScorer]:
    """The route of a model whose releases are decoded and ready."""

    def scorer(release: ReleaseSpec | Undecodable | None) -> ReleaseScorer:
        assert release is not None
        assert not isinstance(release, Undecodable)
        found = releases[release.key].scorer
        assert found is not None
        return found

    champion = scorer(wanted.champion)
    variants = tuple(variant.with_release(scorer(variant.release)) for variant in wanted.variants)
    if wanted.active_challenger is None:
        return Route(model=wanted.model, generation=wanted.generation, champion=champion, variants=variants)
    return Route(
        model=wanted.model,
        generation=wanted.generation,
        champion=champion,
        challenger=scorer(wanted.active_challenger),
        rollout=wanted.rollout,
        shadow_percent=wanted.shadow_percent,
        challenger_percent=wanted.challenger_percent,
        variants=variants,
    )
