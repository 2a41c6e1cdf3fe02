"""Topics of stream sources in memory, for unit tests; the contract tests run over them too."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from flywheel_feature.definitions.model import Source, StreamSource


class MemoryTopics:
    """Records per topic and partition; `partitions` is the default number of partitions."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._records: dict[tuple[str, str], list[list[bytes]]] = {}
        self._stored: dict[tuple[str, str, int, int], int] = {}

    async def ensure(self, source: Source) -> int:
        assert isinstance(source.kind, StreamSource)
        wanted = source.kind.partitions or self._partitions
        return len(self._records.setdefault((source.project, source.id), [[] for _ in range(wanted)]))

    async def send(self, source: Source, events: Sequence[tuple[int, bytes]]) -> list[tuple[int, int]]:
        answers = []
        for partition, value in events:
            records = self._records[source.project, source.id][partition]
            answers.append((partition, len(records)))
            self._stored[source.project, source.id, partition, len(records)] = time.time_ns() // 1000
            records.append(value)
        return answers

    async def end_offsets(self, project: str, source: str) -> Mapping[int, int]:
        return {p: len(records) for p, records in enumerate(self._records.get((project, source), []))}

    async def recent_end_offsets(self, project: str, source: str) -> Mapping[int, int]:
        return await self.end_offsets(project, source)

    async def stored_since(self, project: str, source: str, offsets: Mapping[int, int]) -> int:
        found = (self._stored.get((project, source, p, offset), 0) for p, offset in offsets.items())
        return min((at for at in found if at), default=0)
