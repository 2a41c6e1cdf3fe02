"""Routing during rollouts, and the target of a rollback."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.rollback.errors import NothingToRollBackTo
from flywheel_registry.rollback.target import rollback_target
from flywheel_registry.rollouts.routing import routing_during_rollout
from flywheel_registry.rollouts.state_machine import Progress, RolloutState
from flywheel_registry.serving.history import ServingSpan, rollback_stack, warm_releases
from flywheel_registry.serving.routing import Routing, champion_only

AT = datetime(2013, 1, 1, tzinfo=UTC)


def spans(*releases: int) -> list[ServingSpan]:
    """Spans of these releases, oldest first; a negative number is a rollback to that release."""
    return [ServingSpan(abs(r), abs(r), AT, None, "", r < 0) for r in releases]


@pytest.mark.parametrize(
    ("history", "target"),
    [
        ((1, 2), 1),
        ((1, 2, 3), 2),
        ((1, 2, 3, -2), 1),
        ((1, 2, -1, 3), 1),
        ((1, 2, 3, -1, 4), 1),
        ((1, 2, -1, -2), 1),
        ((1, 2, 1), 2),
    ],
)
def test_rollback_returns_to_the_release_that_served_before(history: tuple[int, ...], target: int) -> None:
    assert rollback_target(spans(*history)) == target


@pytest.mark.parametrize("history", [(), (1,), (1, 2, -1)])
def test_rollback_fails_without_an_earlier_release(history: tuple[int, ...]) -> None:
    with pytest.raises(NothingToRollBackTo):
        rollback_target(spans(*history))


def test_a_named_rollback_target_must_have_served_before() -> None:
    assert rollback_target(spans(1, 2, -1), wanted=2) == 2
    with pytest.raises(NothingToRollBackTo, match="never served"):
        rollback_target(spans(1, 2), wanted=3)
    with pytest.raises(NothingToRollBackTo, match="serves already"):
        rollback_target(spans(1, 2), wanted=2)


@given(st.lists(st.integers(1, 5), min_size=1), st.integers(0, 6))
def test_repeated_rollbacks_never_return_to_the_same_release(promotions: list[int], extra: int) -> None:
    history = spans(*promotions)
    seen = [history[-1].release]
    for _ in range(len(promotions) + extra):
        try:
            target = rollback_target(history)
        except NothingToRollBackTo:
            break
        assert target not in seen
        assert target in warm_releases(history, Routing(champion=history[-1].release))
        seen.append(target)
        history = [*history, *spans(-target)]
    else:
        raise AssertionError("rollbacks did not end")
    assert rollback_stack(history)[-1] == history[-1].release


def test_generation_increases_exactly_when_the_routing_changes() -> None:
    policy = RolloutPolicy(shadow_percent=30)

    def during(routing: Routing, progress: Progress) -> Routing:
        return routing_during_rollout(routing, 7, 2, progress, policy)

    routing = champion_only(Routing(), 1)
    assert (routing.generation, routing.champion) == (1, 1)
    loading = during(routing, Progress())
    assert loading == Routing(2, 1, 2, 7, 0.0, 0.0)
    shadow = during(loading, Progress(RolloutState.SHADOW, 0.0, 1))
    assert shadow == Routing(3, 1, 2, 7, 30.0, 0.0)
    assert during(shadow, Progress(RolloutState.SHADOW, 0.0, 1)) == shadow
    assert during(shadow, Progress(RolloutState.PAUSED, 0, 2, RolloutState.SHADOW)) == shadow
    canary = during(shadow, Progress(RolloutState.CANARY, 5.0, 2))
    assert canary == Routing(4, 1, 2, 7, 0.0, 5.0)
    for end in (RolloutState.ROLLED_BACK, RolloutState.EXPIRED, RolloutState.ABORTED):
        assert during(canary, Progress(end, 0.0, 3)) == Routing(5, 1)
    assert during(canary, Progress(RolloutState.PROMOTED, 100.0, 3)) == Routing(5, 2)
