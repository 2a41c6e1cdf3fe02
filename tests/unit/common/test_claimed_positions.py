"""Positions of a claimed consumer: each partition has one before Kafka is asked for its records."""

from __future__ import annotations

from typing import Any, cast

from flywheel_common.kafka.claimed_consumer import ClaimedConsumer, TopicPartition, _Held
from flywheel_common.kafka.offsets import Claim
from flywheel_common.kafka.stalls import StallWatch

NEW, OLD = TopicPartition("new", 0), TopicPartition("old", 1)


class KafkaConsumer:
    """The calls of an aiokafka consumer; an assignment forgets all positions."""

    def __init__(self) -> None:
        self.positions: dict[TopicPartition, int | None] = {}

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self.positions)

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.positions = dict.fromkeys(partitions)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.positions[partition] = offset


async def test_every_partition_has_a_position_after_each_change_of_the_set() -> None:
    async def begin(_: TopicPartition) -> int:
        return 0

    async def nothing(*_: Any) -> None: ...

    consumer = ClaimedConsumer(
        bootstrap="127.0.0.1:1",
        group="g",
        pool=cast("Any", None),
        topics=list,
        begin=begin,
        end=nothing,
        handler=nothing,
    )
    kafka: Any = KafkaConsumer()
    stalls = StallWatch("g", kafka)

    def claimed(partition: TopicPartition, offset: int) -> None:
        consumer._held[partition] = _Held(1)
        consumer._next[partition] = offset
        consumer._claims[partition] = Claim(partition, offset, 1)

    claimed(OLD, 7)
    consumer._align(kafka, stalls)
    assert kafka.positions == {OLD: 7}
    # A new topic begins at 0, and the other partition goes on behind what was read meanwhile.
    consumer._next[OLD] = 9
    claimed(NEW, 0)
    consumer._align(kafka, stalls)
    assert kafka.positions == {OLD: 9, NEW: 0}
    # A partition that begins again at 0 is read from there.
    kafka.positions[NEW] = 5
    claimed(NEW, 0)
    consumer._align(kafka, stalls)
    assert kafka.positions == {OLD: 9, NEW: 0}
