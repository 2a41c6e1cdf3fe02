"""The transitions between stages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_registry.stages.errors import IllegalTransition
from flywheel_registry.stages.transitions import Stage, check_transition, promotion_path

TRANSITIONS = {
    ("NONE", "STAGING"),
    ("STAGING", "CANDIDATE"),
    ("CANDIDATE", "PRODUCTION"),
    ("PRODUCTION", "ARCHIVED"),
    ("ARCHIVED", "PRODUCTION"),
    ("NONE", "REJECTED"),
    ("STAGING", "REJECTED"),
    ("CANDIDATE", "REJECTED"),
    ("ARCHIVED", "REJECTED"),
}
stages = st.sampled_from(list(Stage))


@given(stages, stages)
def test_only_documented_transitions_are_legal(current: Stage, target: Stage) -> None:
    if (current.value, target.value) in TRANSITIONS:
        check_transition(current, target)
        return
    with pytest.raises(IllegalTransition) as error:
        check_transition(current, target)
    for legal in (b for a, b in TRANSITIONS if a == current.value):
        assert legal in error.value.message


@given(stages, st.none() | stages)
def test_promotion_path_uses_legal_transitions_to_its_target(current: Stage, target: Stage | None) -> None:
    try:
        path = promotion_path(current, target)
    except IllegalTransition:
        order = ["NONE", "STAGING", "CANDIDATE", "PRODUCTION"]
        promotable = current.value in order[:3] and (
            target is None
            or (target.value in order and order.index(target.value) > order.index(current.value))
        )
        assert not promotable
        return
    for a, b in zip((current, *path), path, strict=False):
        check_transition(a, b)
    assert path[-1] is target or (target is None and len(path) == 1)


def test_promoting_an_archived_version_points_to_rollback() -> None:
    with pytest.raises(IllegalTransition, match="RollbackModel"):
        promotion_path(Stage.ARCHIVED, None)
