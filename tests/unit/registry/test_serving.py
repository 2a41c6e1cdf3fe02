"""Routing, and where a rollback goes."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_registry.policy import RolloutPolicy
from flywheel_registry.rollout import Progress, RolloutState
from flywheel_registry.serving import (
    NothingToRollBackTo,
    Routing,
    Span,
    crowned,
    following,
    rollback_target,
    standing,
    warm,
)

AT = datetime(2013, 1, 1, tzinfo=UTC)


def spans(*releases: int) -> list[Span]:
    """Negative: a rollback to it."""
    return [Span(abs(r), abs(r), AT, None, "", r < 0) for r in releases]


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
def test_a_rollback_goes_to_what_really_served_before(history: tuple[int, ...], target: int) -> None:
    assert rollback_target(spans(*history)) == target


@pytest.mark.parametrize("history", [(), (1,), (1, 2, -1)])
def test_there_may_be_nothing_to_roll_back_to(history: tuple[int, ...]) -> None:
    with pytest.raises(NothingToRollBackTo):
        rollback_target(spans(*history))


def test_a_named_release_must_have_served() -> None:
    assert rollback_target(spans(1, 2, -1), wanted=2) == 2
    with pytest.raises(NothingToRollBackTo, match="never served"):
        rollback_target(spans(1, 2), wanted=3)
    with pytest.raises(NothingToRollBackTo, match="serves already"):
        rollback_target(spans(1, 2), wanted=2)


@given(st.lists(st.integers(1, 5), min_size=1), st.integers(0, 6))
def test_repeated_rollbacks_end_after_finitely_many_different_releases(
    promotions: list[int], extra: int
) -> None:
    history = spans(*promotions)
    seen = [history[-1].release]
    for _ in range(len(promotions) + extra):
        try:
            target = rollback_target(history)
        except NothingToRollBackTo:
            break
        assert target not in seen
        assert target in warm(history, Routing(champion=history[-1].release))
        seen.append(target)
        history = [*history, *spans(-target)]
    else:
        raise AssertionError("rollbacks never ended")
    assert standing(history)[-1] == history[-1].release


def test_every_change_of_routing_raises_the_generation_and_nothing_else_does() -> None:
    policy = RolloutPolicy(shadow_percent=30)
    routing = crowned(Routing(), 1)
    assert (routing.generation, routing.champion) == (1, 1)
    shadow = following(routing, 7, 2, Progress(), policy)
    assert shadow == Routing(2, 1, 2, 7, 30.0, 0.0)
    assert following(shadow, 7, 2, Progress(), policy) == shadow
    assert following(shadow, 7, 2, Progress(RolloutState.PAUSED, 0, 1, RolloutState.SHADOW), policy) == shadow
    canary = following(shadow, 7, 2, Progress(RolloutState.CANARY, 5.0, 1), policy)
    assert canary == Routing(3, 1, 2, 7, 0.0, 5.0)
    assert following(canary, 7, 2, Progress(RolloutState.ROLLED_BACK, 0.0, 2), policy) == Routing(4, 1)
    assert following(canary, 7, 2, Progress(RolloutState.PROMOTED, 100.0, 2), policy) == Routing(4, 2)
