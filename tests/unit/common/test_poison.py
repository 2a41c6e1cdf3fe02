"""Isolation of poison records: the bisection that finds them in a failed batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_common.kafka.poison import ISOLATION_ATTEMPTS, Batch, PoisonError, isolate
from flywheel_common.kafka.record import Record


def record(offset: int) -> Record:
    return Record("t", 0, offset, "", b"", (), 0)


def batch(*offsets: int, failures: int = 0) -> Batch:
    return Batch(tuple(record(o) for o in offsets), offsets[-1] + 1, failures)


def offsets(records: tuple[Record, ...]) -> list[int]:
    return [r.offset for r in records]


class Outcome:
    """Processes a batch with a handler that fails on every batch that contains a bad record."""

    def __init__(self, whole: Batch, bad: set[int]) -> None:
        self.processed: list[int] = []
        self.poison: list[int] = []
        self.positions: list[int] = []
        self.attempts: dict[int, int] = {}
        pending = [whole]
        while pending:
            tried = pending.pop(0)
            for offset in offsets(tried.records):
                self.attempts[offset] = self.attempts.get(offset, 0) + 1
            if bad.isdisjoint(offsets(tried.records)):
                self.processed += offsets(tried.records)
                self.positions.append(tried.next_offset)
                continue
            step = isolate(tried)
            self.poison += offsets(step.poison)
            pending[:0] = step.batches


def test_a_failed_batch_is_halved() -> None:
    step = isolate(batch(3, 5, 6, 9, 10))
    assert ([3, 5], 6, 0) == (offsets(step.batches[0].records), *_position(step.batches[0]))
    assert ([6, 9, 10], 11, 1) == (offsets(step.batches[1].records), *_position(step.batches[1]))
    assert () == step.poison


def _position(part: Batch) -> tuple[int, int]:
    return part.next_offset, part.failures


def test_a_single_record_is_tried_again_before_it_is_poison() -> None:
    alone = batch(7)
    for failures in range(1, ISOLATION_ATTEMPTS):
        step = isolate(alone)
        assert ((), (batch(7, failures=failures),)) == (step.poison, step.batches)
        (alone,) = step.batches
    step = isolate(alone)
    assert [7] == offsets(step.poison)
    assert ((), 8) == (step.batches[0].records, step.batches[0].next_offset)


def test_a_batch_without_records_is_retried_for_ever() -> None:
    empty = Batch((), 8, failures=ISOLATION_ATTEMPTS)
    step = isolate(empty)
    assert ((), (Batch((), 8, ISOLATION_ATTEMPTS + 1),)) == (step.poison, step.batches)


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_exactly_the_bad_records_are_found_and_order_is_kept(case: tuple[int, set[int]]) -> None:
    count, bad = case
    outcome = Outcome(batch(*range(count)), bad)
    assert sorted(bad) == outcome.poison
    assert [o for o in range(count) if o not in bad] == outcome.processed
    assert sorted(outcome.positions) == outcome.positions
    assert count == outcome.positions[-1]
    assert all(outcome.attempts[o] >= ISOLATION_ATTEMPTS for o in bad)


def test_one_bad_record_costs_logarithmically_many_attempts() -> None:
    outcome = Outcome(batch(*range(512)), {300})
    assert [300] == outcome.poison
    assert ISOLATION_ATTEMPTS + 10 > max(outcome.attempts.values())


def test_named_poison_is_removed_from_the_batch() -> None:
    poison = PoisonError("bad", [record(2)])
    rest = batch(1, 2, 3, failures=2).without(poison)
    assert ([1, 3], 4, 2) == (offsets(rest.records), rest.next_offset, rest.failures)
    with pytest.raises(RuntimeError, match="records of the batch"):
        rest.without(poison)


def test_the_part_of_a_record_that_is_not_poison_stays() -> None:
    part = replace(record(2), value=b"part")
    rest = batch(1, 2, 3).without(PoisonError("bad", [record(2)], [part]))
    assert [1, 2, 3] == offsets(rest.records)
    assert part is rest.records[1]


def test_pieces_hold_all_records_and_move_the_position_between() -> None:
    found = batch(3, 5, 6, 9, 10).pieces(2)
    assert [([3, 5], 6), ([6, 9], 10), ([10], 11)] == [(offsets(p.records), p.next_offset) for p in found]
