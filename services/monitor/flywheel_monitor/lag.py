"""Consumer lag: how many records the broker holds that were not processed yet."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Lag:
    """Records not yet processed per (topic, partition), and records in the dead-letter topic."""

    records: dict[tuple[str, int], int] = field(default_factory=dict)
    dead_letters: int = 0

    @property
    def total(self) -> int:
        return sum(self.records.values())

    def behind(self, topic: str) -> frozenset[int]:
        """Partitions of a topic with records to read."""
        return frozenset(
            partition for (name, partition), lag in self.records.items() if name == topic and lag > 0
        )


def unread(begin: int, end: int, position: int | None) -> int:
    """Of the records [begin, end) that a partition holds, those from the position on; all where there is none."""
    return max(0, end - max(begin, begin if position is None else position))
