"""Tests of the application of generations."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from flywheel_inference.routing.route import Variant
from flywheel_inference.serving.applied_routes import AppliedRoutes, apply_desired
from flywheel_inference.serving.desired_state import DesiredModel, Undecodable
from flywheel_inference.serving.tracked_release import ReleaseKey, TrackedRelease

M = "projects/p/models/m"


def spec(name: str, digest: str = "") -> Any:
    return SimpleNamespace(name=name, key=(name, digest))


def releases(**ready: bool) -> dict[ReleaseKey, TrackedRelease]:
    """Tracked releases by name, ready or not."""
    scorers: dict[str, Any] = {name: SimpleNamespace(spec=spec(name), ready=r) for name, r in ready.items()}
    return {spec(name).key: TrackedRelease(spec(name), scorer=scorer) for name, scorer in scorers.items()}


def desired(generation: int, champion: str | None, challenger: str | None = None, **fields: Any) -> Any:
    return {
        M: DesiredModel(
            model=M,
            generation=generation,
            champion=spec(champion) if champion else None,
            challenger=spec(challenger) if challenger else None,
            **fields,
        )
    }


def routing(applied: AppliedRoutes) -> tuple[str, str, int, int]:
    """Champion, challenger, generation of the route, and the generation that counts as applied."""
    route = applied.routes[M]
    challenger = route.challenger.spec.name if route.challenger else ""
    return route.champion.spec.name, challenger, route.generation, applied.generations[M]


def test_a_generation_is_applied_when_its_champion_is_ready() -> None:
    waiting = apply_desired(AppliedRoutes(), desired(1, "a"), releases(a=False))
    assert waiting == AppliedRoutes()
    assert routing(apply_desired(waiting, desired(1, "a"), releases(a=True))) == ("a", "", 1, 1)


def test_the_old_route_stays_until_every_release_of_the_new_one_is_ready() -> None:
    first = apply_desired(AppliedRoutes(), desired(1, "a"), releases(a=True))
    wanted = desired(2, "a", "b", rollout="r", challenger_percent=5.0)
    waiting = apply_desired(first, wanted, releases(a=True, b=False))
    assert routing(waiting) == ("a", "", 1, 1) and not waiting.differs_from(first)
    applied = apply_desired(waiting, wanted, releases(a=True, b=True))
    assert routing(applied) == ("a", "b", 2, 2) and applied.differs_from(waiting)
    assert (applied.routes[M].rollout, applied.routes[M].challenger_percent) == ("r", 5.0)


def test_without_an_old_route_the_champion_serves_alone_as_generation_0() -> None:
    wanted = desired(3, "a", "b", shadow_percent=10.0)
    partial = apply_desired(AppliedRoutes(), wanted, releases(a=True, b=False))
    assert routing(partial) == ("a", "", 3, 0)
    assert routing(apply_desired(partial, wanted, releases(a=True, b=True))) == ("a", "b", 3, 3)


def test_a_challenger_without_traffic_is_not_needed() -> None:
    applied = apply_desired(AppliedRoutes(), desired(1, "a", "b"), releases(a=True, b=False))
    assert routing(applied) == ("a", "", 1, 1)


def test_a_model_without_a_champion_loses_its_route() -> None:
    first = apply_desired(AppliedRoutes(), desired(1, "a"), releases(a=True))
    emptied = apply_desired(first, desired(2, None), releases())
    assert (dict(emptied.routes), dict(emptied.generations)) == ({}, {M: 2})


def test_a_model_that_is_no_longer_desired_is_removed() -> None:
    first = apply_desired(AppliedRoutes(), desired(1, "a"), releases(a=True))
    assert apply_desired(first, {}, releases()) == AppliedRoutes()


def test_an_undecodable_champion_leaves_the_old_route_and_acknowledges_nothing() -> None:
    first = apply_desired(AppliedRoutes(), desired(1, "a"), releases(a=True))
    unknown = {M: DesiredModel(model=M, generation=2, champion=Undecodable("b", "unknown calibration"))}
    kept = apply_desired(first, unknown, releases(a=True))
    assert routing(kept) == ("a", "", 1, 1)
    assert apply_desired(AppliedRoutes(), unknown, releases()) == AppliedRoutes()


def test_an_undecodable_challenger_leaves_the_old_route_and_acknowledges_nothing() -> None:
    wanted = desired(2, "b", challenger_percent=5.0)
    wanted[M] = replace(wanted[M], challenger=Undecodable("c", "unknown calibration"))
    first = apply_desired(AppliedRoutes(), desired(1, "a"), releases(a=True))
    assert routing(apply_desired(first, wanted, releases(a=True, b=True))) == ("a", "", 1, 1)
    assert routing(apply_desired(AppliedRoutes(), wanted, releases(b=True))) == ("b", "", 2, 0)


def test_changed_content_of_a_release_replaces_the_route_when_it_is_ready() -> None:
    first = apply_desired(AppliedRoutes(), desired(1, "a"), releases(a=True))
    changed = spec("a", "other")
    wanted = {M: DesiredModel(model=M, generation=1, champion=changed)}
    tracked = TrackedRelease(changed)
    assert apply_desired(first, wanted, {changed.key: tracked}).routes == first.routes
    scorer: Any = SimpleNamespace(spec=changed, ready=True)
    tracked.scorer = scorer
    assert apply_desired(first, wanted, {changed.key: tracked}).routes[M].champion is scorer


def test_a_generation_is_applied_when_its_variants_are_ready() -> None:
    first = apply_desired(AppliedRoutes(), desired(1, "a"), releases(a=True))
    wanted = desired(2, "a", variants=(Variant("v", spec("b"), 5.0), Variant("w", spec("a"), 5.0)))
    assert apply_desired(first, wanted, releases(a=True, b=False)) == first
    applied = apply_desired(first, wanted, releases(a=True, b=True))
    shares = [(v.name, v.release.spec.name, v.percent) for v in applied.routes[M].variants]
    assert (shares, applied.generations[M]) == ([("v", "b", 5.0), ("w", "a", 5.0)], 2)
    unknown = desired(3, "a", variants=(Variant("v", Undecodable("c", "unknown kind"), 5.0),))
    assert apply_desired(applied, unknown, releases(a=True, b=True)) == applied
    alone = apply_desired(AppliedRoutes(), unknown, releases(a=True))
    assert (alone.routes[M].variants, alone.generations[M]) == ((), 0)
