"""Poison records: records that a handler cannot process, and how they are isolated from the rest of a batch.

A handler that knows the bad records raises PoisonError. After any other permanent error the batch is halved,
and halved again, until single records are left: a record that keeps failing alone is poison. Poison records
go to the dead-letter topic; all other records are processed once and in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from flywheel_common.kafka.record import Record

ISOLATION_ATTEMPTS = 3
"""Failures after which a single record is poison. Failures of larger batches count if the record was always
in their last half."""

PIECE_RECORDS = 200
"""A larger batch with poison is processed in pieces of so many records: the good records of each end a run of
poison, whatever the size of a poll."""


class PoisonError(Exception):
    """Raised by a handler: these records can never be processed. The transaction is rolled back, the records
    go to the dead-letter topic, and the rest of the batch is tried again without them.

    If only a part of a record is poison, `records` holds that part and `remaining` the rest, both with the
    offset of the record.
    """

    def __init__(self, why: str, records: Sequence[Record], remaining: Sequence[Record] = ()) -> None:
        super().__init__(why)
        self.why = why
        self.records = list(records)
        self.remaining = list(remaining)


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one partition, processed together; afterwards the position is `next_offset`.

    `failures` counts the permanent errors so far. A batch without records only moves the position.
    """

    records: tuple[Record, ...]
    next_offset: int
    failures: int = 0

    def pieces(self, size: int) -> list[Self]:
        """The batch in batches of at most `size` records; each moves the position to the next one."""
        starts = range(0, len(self.records), size)
        ends = [*(self.records[at].offset for at in starts[1:]), self.next_offset]
        return [
            replace(self, records=self.records[at : at + size], next_offset=end)
            for at, end in zip(starts, ends, strict=True)
        ]

    def without(self, poison: PoisonError) -> Self:
        """The batch without the poison. Raises RuntimeError when none of its records is in the batch."""
        removed = {record.offset for record in poison.records}
        if removed.isdisjoint(record.offset for record in self.records):
            raise RuntimeError("PoisonError must name records of the batch")
        remaining = {record.offset: record for record in poison.remaining}
        kept = (remaining.get(r.offset) if r.offset in removed else r for r in self.records)
        return replace(self, records=tuple(record for record in kept if record is not None))


@dataclass(frozen=True, slots=True)
class Isolation:
    """What follows a failed batch: first send `poison` to the dead-letter topic, then process `batches` in
    order."""

    poison: tuple[Record, ...]
    batches: tuple[Batch, ...]


def isolate(failed: Batch) -> Isolation:
    """One step of the bisection, after the handler failed on `failed` with a permanent error.

    Several records become two halves; the first half moves the position to the first record of the second. A
    single record is tried again until `failures` reaches ISOLATION_ATTEMPTS; then it is poison. An empty
    batch is tried again without limit.
    """
    records, failures = failed.records, failed.failures + 1
    if len(records) > 1:
        middle = len(records) // 2
        first = Batch(records[:middle], records[middle].offset)
        return Isolation((), (first, Batch(records[middle:], failed.next_offset, failures)))
    if not records or failures < ISOLATION_ATTEMPTS:
        return Isolation((), (replace(failed, failures=failures),))
    return Isolation(records, (Batch((), failed.next_offset, failures),))
