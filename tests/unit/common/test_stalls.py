"""Which silent partitions count as stalled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from flywheel_common.kafka import stalls
from flywheel_common.kafka.stalls import StallWatch

A, B = (TopicPartition("t", p) for p in range(2))


class Consumer:
    """A consumer that says where it stands and where the partitions end."""

    def __init__(self) -> None:
        self.at = {A: 0, B: 0}
        self.ends = {A: 0, B: 0}
        self.hangs = False

    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        if self.hangs:
            await asyncio.Event().wait()
        return {tp: self.ends[tp] for tp in partitions}

    async def position(self, partition: TopicPartition) -> int:
        return self.at[partition]


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def consumer() -> Consumer:
    return Consumer()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(consumer: Consumer, clock: Clock) -> StallWatch:
    return StallWatch("g", consumer, clock)  # type: ignore[arg-type]


async def looks(watch: StallWatch, clock: Clock, seconds: int) -> None:
    """A look each second, without records."""
    for _ in range(seconds):
        clock.now += 1
        await watch.look([A, B], [])


async def test_stalled_partition_is_found_while_another_one_is_looked_at(
    consumer: Consumer, clock: Clock, watch: StallWatch
) -> None:
    consumer.ends[A] = 1
    await watch.look([A, B], [])
    await looks(watch, clock, 3)
    await watch.look([A, B], [B])
    # B is looked at between the two looks at A.
    await looks(watch, clock, 8)
    with pytest.raises(KafkaError, match="t/0"):
        await looks(watch, clock, 1)
    assert 12 == clock.now


async def test_partition_without_unread_records_has_not_stalled(
    consumer: Consumer, clock: Clock, watch: StallWatch
) -> None:
    await looks(watch, clock, 50)
    for _ in range(10):
        # A record waits for one look, then it is read.
        consumer.ends[A] += 1
        await looks(watch, clock, 7)
        consumer.at[A] += 1
        await watch.look([A, B], [A])


async def test_partition_with_a_new_position_begins_again(
    consumer: Consumer, clock: Clock, watch: StallWatch
) -> None:
    consumer.ends[A] = 1
    for _ in range(10):
        await looks(watch, clock, 8)
        watch.forget([A])


async def test_unknown_ends_are_an_error_after_a_bounded_time(
    consumer: Consumer, clock: Clock, watch: StallWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stalls, "STALL_SECONDS", 0.05)
    consumer.hangs = True
    await watch.look([A, B], [])
    with pytest.raises(TimeoutError):
        await looks(watch, clock, 1)
