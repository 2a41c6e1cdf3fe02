"""The assignment of partitions to members: complete, even, and without needless moves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flywheel_common.kafka.assignment import assign

partitions_of = st.builds(
    lambda counts: [(f"t{i}", p) for i, count in enumerate(counts) for p in range(count)],
    st.lists(st.integers(1, 4), max_size=12),
)
some_members = st.sets(st.sampled_from("abcdefg"), min_size=1).map(sorted)


@given(partitions_of, some_members, st.data())
def test_every_partition_has_one_member_and_shares_differ_by_one(
    partitions: list[tuple[str, int]], members: list[str], data: st.DataObject
) -> None:
    owners = {p: data.draw(st.sampled_from(["", "gone", *members])) for p in partitions}
    assigned = assign(partitions, members, owners)
    assert set(assigned) == set(partitions)
    shares = {m: list(assigned.values()).count(m) for m in members}
    assert max(shares.values()) - min(shares.values()) <= 1
    assert set(assigned.values()) <= set(members)


@given(partitions_of, some_members, st.integers(1, 8), st.randoms())
def test_new_partitions_move_no_others_and_order_does_not_matter(
    partitions: list[tuple[str, int]], members: list[str], added: int, dice: st.DataObject
) -> None:
    before = assign(partitions, members, {})
    more = [*partitions, *(("new", p) for p in range(added))]
    dice.shuffle(more)  # type: ignore[attr-defined]
    after = assign(more, members[::-1], before)
    assert before == {p: m for p, m in after.items() if p[0] != "new"}


@given(partitions_of, some_members)
def test_a_member_that_joins_or_leaves_moves_only_its_share(
    partitions: list[tuple[str, int]], members: list[str]
) -> None:
    before = assign(partitions, members, {})
    joined = assign(partitions, [*members, "z"], before)
    moved = {p for p in partitions if joined[p] != before[p]}
    assert {joined[p] for p in moved} <= {"z"}
    assert len(moved) <= -(-len(partitions) // (len(members) + 1))
    left = assign(partitions, members, joined)
    assert all(left[p] == joined[p] for p in partitions if joined[p] != "z")


def test_without_members_nothing_is_assigned() -> None:
    assert {} == assign([("t", 0)], [], {("t", 0): "gone"})
