"""`ports.ConsumerLag` over topics in memory, for unit tests of the use cases. Held to the same contract suite as Kafka."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from flywheel_common.errors import Unavailable
from flywheel_monitor.lag import Lag, unread


class MemoryLag:
    """`topics`: the number of partitions of each. `away`: the broker does not answer."""

    def __init__(self, topics: Mapping[str, int] | None = None) -> None:
        self._partitions = [(topic, p) for topic, count in (topics or {}).items() for p in range(count)]
        self._begins: Counter[tuple[str, int]] = Counter()
        self._ends: Counter[tuple[str, int]] = Counter()
        self._positions: dict[tuple[str, int], int | None] = {}
        self._parked = 0
        self.last = Lag()
        self.away = False

    def write(self, topic: str, partition: int, count: int = 1) -> None:
        self._ends[topic, partition] += count

    def drop(self, topic: str, partition: int, before: int) -> None:
        """The broker keeps the records of a partition no longer whose offset is below `before`."""
        self._begins[topic, partition] = before

    def commit(self, topic: str, partition: int, next_offset: int | None) -> None:
        """The group has processed what is below; None: it has claimed the partition and processed nothing."""
        self._positions[topic, partition] = next_offset

    def park(self, count: int = 1) -> None:
        """So many records go to the dead letters."""
        self._parked += count

    async def read(self) -> Lag:
        if self.away or not self._positions.keys() <= set(self._partitions):
            raise Unavailable("The broker does not answer for every partition.", reason="KAFKA_UNAVAILABLE")
        self.last = Lag(
            {p: unread(self._begins[p], self._ends[p], self._positions.get(p)) for p in self._partitions},
            self._parked,
        )
        return self.last
