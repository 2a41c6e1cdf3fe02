"""Keys of entities: unique per entity and view, and in one Redis slot per entity."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from flywheel_feature.definitions.model import BatchView, DataType, View
from flywheel_feature.encoding.keys import NO_ENTITY, entity_keys, key_prefix

TEXT = st.text(alphabet=st.sampled_from("ab1:{}/@!é\0"), max_size=6)
TYPES = {
    DataType.STRING: TEXT,
    DataType.BYTES: st.binary(max_size=6) | TEXT.map(str.encode),
    DataType.INT64: st.integers(-(2**63), 2**63 - 1) | st.integers(-20, 20),
    DataType.BOOL: st.booleans(),
}
FACTS = View("default", "facts", "plane", BatchView("source", ()), version=1)


@st.composite
def two_entities(draw: st.DrawFn) -> tuple[list[DataType], list[object], list[object]]:
    kinds = draw(st.lists(st.sampled_from(list(TYPES)), min_size=1, max_size=3))
    one, other = ([draw(TYPES[k]) for k in kinds] for _ in range(2))
    return kinds, one, other


@given(two_entities())
def test_keys_are_equal_exactly_when_entities_are_equal(
    entities: tuple[list[DataType], list[object], list[object]],
) -> None:
    kinds, one, other = entities
    names = entity_keys([(k, [a, b]) for k, a, b in zip(kinds, one, other, strict=True)])
    assert (names[0] == names[1]) == (one == other)
    assert NO_ENTITY not in names


@given(
    st.lists(TEXT, min_size=1, max_size=3),
    st.lists(TEXT, min_size=1, max_size=3),
    st.sampled_from(["facts", "fact"]),
    st.integers(1, 12),
)
def test_different_entities_and_views_never_share_a_key(
    one: list[str], other: list[str], view_id: str, version: int
) -> None:
    first = key_prefix(FACTS) + entity_keys([(DataType.STRING, [v]) for v in one])[0]
    second_view = replace(FACTS, id=view_id, version=version)
    second = key_prefix(second_view) + entity_keys([(DataType.STRING, [v]) for v in other])[0]
    assert (first == second) == ((one, "facts", 1) == (other, view_id, version))


@given(st.lists(TEXT, min_size=1, max_size=3), st.integers(1, 99))
def test_keys_of_all_views_of_an_entity_are_in_one_slot(values: list[str], version: int) -> None:
    name = entity_keys([(DataType.STRING, [v]) for v in values])[0]
    other = replace(FACTS, id="others", version=version)
    assert key_slot(key_prefix(FACTS) + name) == key_slot(key_prefix(other) + name)
