"""What the stream worker keeps in PostgreSQL, in memory: ids seen, archived segments and positions. For unit tests; held to the same
contract suite as store/archive.py.

Ports: stream_materialization.SeenEvents and ArchivePositions, archiving.SegmentStore, archive_replay.Segments, freshness.Archived,
erasure_ports.EventArchive, generations.GenerationCounter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from flywheel_feature.archiving import NewSegment
from flywheel_feature.memory_erasure import Garbage
from flywheel_feature.offline.ports import Segment


class MemoryStreams:
    def __init__(self, bucket: str = "memory", garbage: Garbage | None = None) -> None:
        self._bucket = bucket
        self._garbage: Garbage = {} if garbage is None else garbage
        self._seen: dict[tuple[str, str], tuple[int, int, int]] = {}
        self._archived: dict[tuple[str, str], dict[int, tuple[int, int]]] = {}
        """Partition → (next offset, events archived)."""
        self._segments: dict[tuple[str, str], list[Segment]] = {}
        self._generation = 0

    async def generation(self) -> int:
        return self._generation

    async def next_generation(self, after: int) -> int:
        self._generation += self._generation == after
        return self._generation

    async def first_seen(
        self, source: str, event_ids: Sequence[str], partition: int, offsets: Sequence[int]
    ) -> list[bool]:
        answers = []
        place, last = 0, -1
        for event_id, offset in zip(event_ids, offsets, strict=True):
            place, last = (place + 1 if offset == last else 0), offset
            here = partition, offset, place
            answers.append(self._seen.setdefault((source, event_id), here) == here)
        return answers

    async def archived_offset(self, project: str, source: str, partition: int) -> int:
        return self._archived.get((project, source), {}).get(partition, (0, 0))[0]

    async def archived(self, project: str) -> dict[str, dict[int, tuple[int, int]]]:
        return {source: dict(held) for (of, source), held in self._archived.items() if of == project}

    async def archived_offsets(self, project: str, source: str) -> Mapping[int, int]:
        return {p: offset for p, (offset, _) in self._archived.get((project, source), {}).items()}

    async def segments(self, project: str, source: str) -> Sequence[Segment]:
        found = self._segments.get((project, source), [])
        return sorted(found, key=lambda s: (s.partition, s.first_offset))

    async def commit(self, segment: NewSegment) -> bool:
        s = segment
        key = s.source.project, s.source.id
        positions = self._archived.setdefault(key, {})
        # Where nothing is archived yet, Kafka may begin anywhere.
        offset, count = positions.get(s.partition, (s.first_offset, 0))
        if offset != s.first_offset:
            return False
        positions[s.partition] = s.next_offset, count + s.event_count
        if s.key:
            uri = f"s3://{self._bucket}/{s.key}"
            self._segments.setdefault(key, []).append(
                Segment(
                    uri, s.partition, s.first_offset, s.next_offset, s.min_time, s.max_time, s.event_count
                )
            )
        return True

    async def replace_segment(self, old: str, new: str, events: int, min_time: int, max_time: int) -> None:
        uri = f"s3://{self._bucket}/{old}"
        for key, held in self._segments.items():
            for segment in [s for s in held if s.uri == uri]:
                held.remove(segment)
                if events:
                    changed = replace(
                        segment, uri=f"s3://{self._bucket}/{new}", event_count=events, min_time=min_time, max_time=max_time
                    )  # fmt: skip
                    held.append(changed)
                offset, count = self._archived[key][segment.partition]
                self._archived[key][segment.partition] = offset, count - segment.event_count + events
                self._garbage[old] = None
