"""`ConsumerLag` over topics in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from flywheel_common.kafka.errors import KafkaUnavailable
from flywheel_monitor.ingest.lag import Lag, unread


class MemoryLag:
    """`topics`: the number of partitions of each topic. `down`: reading fails."""

    def __init__(self, topics: Mapping[str, int] | None = None) -> None:
        self._partitions = [(topic, p) for topic, count in (topics or {}).items() for p in range(count)]
        self._begins: Counter[tuple[str, int]] = Counter()
        self._ends: Counter[tuple[str, int]] = Counter()
        self._positions: dict[tuple[str, int], int | None] = {}
        self._dead_letters = 0
        self.last = Lag()
        self.down = False

    def write(self, topic: str, partition: int, count: int = 1) -> None:
        self._ends[topic, partition] += count

    def drop(self, topic: str, partition: int, before: int) -> None:
        """Delete the records of a partition whose offset is below `before`."""
        self._begins[topic, partition] = before

    def commit(self, topic: str, partition: int, next_offset: int | None) -> None:
        """Set the group's position; None: the partition is claimed and has no position."""
        self._positions[topic, partition] = next_offset

    def park(self, count: int = 1) -> None:
        """Add records to the dead-letter topic."""
        self._dead_letters += count

    async def read(self) -> Lag:
        if self.down or not self._positions.keys() <= set(self._partitions):
            raise KafkaUnavailable("The broker does not list every partition.")
        self.last = Lag(
            {p: unread(self._begins[p], self._ends[p], self._positions.get(p)) for p in self._partitions},
            self._dead_letters,
        )
        return self.last
