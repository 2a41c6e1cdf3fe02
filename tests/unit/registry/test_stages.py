"""The stages' state machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_registry.stages import IllegalTransition, Stage, check, path_up

EDGES = {
    ("NONE", "STAGING"), ("STAGING", "CANDIDATE"), ("CANDIDATE", "PRODUCTION"), ("PRODUCTION", "ARCHIVED"), ("ARCHIVED", "PRODUCTION"),
    ("NONE", "REJECTED"), ("STAGING", "REJECTED"), ("CANDIDATE", "REJECTED"), ("ARCHIVED", "REJECTED"),
}  # fmt: skip
stages = st.sampled_from(list(Stage))


@given(stages, stages)
def test_exactly_the_documented_edges_are_legal(current: Stage, target: Stage) -> None:
    if (current.value, target.value) in EDGES:
        check(current, target)
        return
    with pytest.raises(IllegalTransition) as error:
        check(current, target)
    for way in (b for a, b in EDGES if a == current.value):
        assert way in error.value.message


@given(stages, st.none() | stages)
def test_a_path_up_is_made_of_legal_edges_and_ends_where_it_should(
    current: Stage, target: Stage | None
) -> None:
    try:
        path = path_up(current, target)
    except IllegalTransition:
        order = ["NONE", "STAGING", "CANDIDATE", "PRODUCTION"]
        climbable = current.value in order[:3] and (
            target is None
            or (target.value in order and order.index(target.value) > order.index(current.value))
        )
        assert not climbable
        return
    for a, b in zip((current, *path), path, strict=False):
        check(a, b)
    assert path[-1] is target or (target is None and len(path) == 1)


def test_an_archived_version_is_pointed_to_the_rollback() -> None:
    with pytest.raises(IllegalTransition, match="RollbackModel"):
        path_up(Stage.ARCHIVED, None)
