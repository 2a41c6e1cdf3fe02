"""Entity keys as text: the key of cached predictions and the default routing subject."""

from __future__ import annotations

from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from flywheel_common.scoring.cached_prediction import joined_keys
from flywheel_inference.requests.request import subject_of

SEPARATORS = st.text(alphabet="|\\,:ab1", max_size=4)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "STRING": SEPARATORS | st.text(max_size=4),
    "BYTES": st.binary(max_size=4) | SEPARATORS.map(str.encode),
    "INT64": st.integers(-20, 20) | st.integers(-(2**63), 2**63 - 1),
    "BOOL": st.booleans(),
}
TYPES = st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=4)


def keys_of(types: list[str]) -> st.SearchStrategy[tuple[Any, ...]]:
    """Entity keys of a feature set whose join keys have these types."""
    return st.tuples(*(VALUES[data_type] for data_type in types))


PAIRS = TYPES.flatmap(lambda types: st.tuples(keys_of(types), keys_of(types)))


@given(PAIRS)
def test_different_keys_of_a_feature_set_have_different_texts(
    pair: tuple[tuple[Any, ...], tuple[Any, ...]],
) -> None:
    first, second = pair
    assert (first == second) == (joined_keys(first) == joined_keys(second))
    assert (first == second) == (subject_of(first) == subject_of(second))


@given(st.lists(SEPARATORS, min_size=1, max_size=4), st.lists(SEPARATORS, min_size=1, max_size=4))
def test_keys_of_different_length_have_different_texts(first: list[str], second: list[str]) -> None:
    assume(first != second)
    assert joined_keys(tuple(first)) != joined_keys(tuple(second))


def test_keys_that_collided_are_different() -> None:
    assert joined_keys(("a|b", "c")) == "a\\|b|c"
    assert joined_keys(("a", "b|c")) == "a|b\\|c"
    assert joined_keys(("a\\", "b")) == "a\\\\|b"


@given(SEPARATORS)
def test_the_subject_of_a_single_key_is_the_key(key: str) -> None:
    assert subject_of((key,)) == key
    assert subject_of((7,)) == "7"


def test_keys_without_separators_keep_the_subject_they_had() -> None:
    assert subject_of(("UA", 7, True)) == joined_keys(("UA", 7, True)) == "UA|7|True"
