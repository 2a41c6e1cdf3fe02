"""Finds partitions that have records which the Kafka consumer does not fetch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from flywheel_common.telemetry.logs import get_logger

log = get_logger(__name__)

STALL_SECONDS = 5.0
"""How long a partition with unread records may give none, at two looks, before it counts as stalled."""


class StallWatch:
    """Watches the partitions of one consumer.

    aiokafka may never fetch a partition that had no leader when it was assigned, without any error, and may
    learn of a new topic late. A consumer that is made anew fetches it.
    """

    def __init__(
        self, group: str, consumer: AIOKafkaConsumer, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._group = group
        self._consumer = consumer
        self._clock = clock
        self._heard: dict[TopicPartition, float] = {}
        """When each partition last gave records or was looked at."""
        self._behind: dict[TopicPartition, int] = {}
        """Where a silent partition stood that had records at its last look."""

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """Begin again with partitions that are no longer assigned, or have a new position."""
        for tp in partitions:
            self._heard.pop(tp, None)
            self._behind.pop(tp, None)

    async def look(self, readable: Collection[TopicPartition], polled: Collection[TopicPartition]) -> None:
        """Call it after each poll of `readable` with the partitions that gave records.

        Raises KafkaError if a partition has stalled, TimeoutError if this cannot be found out.
        """
        now = self._clock()
        self._heard.update(dict.fromkeys(polled, now))
        silent = [tp for tp in readable if now - self._heard.setdefault(tp, now) > STALL_SECONDS]
        if not silent:
            return
        try:
            async with asyncio.timeout(STALL_SECONDS):
                ends = await self._consumer.end_offsets(silent)
                positions = {tp: await self._consumer.position(tp) for tp in silent}
        except TimeoutError:
            log.warning("the ends of partitions without new records are unknown", partitions=names(silent))
            raise
        self._heard.update(dict.fromkeys(silent, now))
        # Records may have come just now; at the next look they are read, or the partition has stalled.
        behind = {tp: at for tp, at in positions.items() if at < ends[tp]}
        stalled = [tp for tp, at in behind.items() if self._behind.get(tp) == at]
        self._behind.update(behind)
        if stalled:
            log.warning("partitions have records that are not fetched", partitions=names(stalled))
            raise KafkaError(f"{self._group} gets no records of {names(stalled)}")


def names(partitions: Iterable[TopicPartition]) -> list[str]:
    """Partitions as log lines show them: `topic/0`."""
    return [f"{tp.topic}/{tp.partition}" for tp in partitions]
