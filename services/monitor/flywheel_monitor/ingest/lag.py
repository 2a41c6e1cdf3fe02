"""Consumer lag: how many records of the broker are not processed yet."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Lag:
    """Unprocessed records per (topic, partition), and records in the dead-letter topic."""

    records: dict[tuple[str, int], int] = field(default_factory=dict)
    dead_letters: int = 0

    @property
    def total(self) -> int:
        return sum(self.records.values())

    def unread_partitions(self, topic: str) -> frozenset[int]:
        """Partitions of a topic with unprocessed records."""
        return frozenset(
            partition for (name, partition), lag in self.records.items() if name == topic and lag > 0
        )


def unread(begin: int, end: int, position: int | None) -> int:
    """How many of the records [begin, end) that a partition holds are at or after the position; all
    without one."""
    return max(0, end - max(begin, begin if position is None else position))
