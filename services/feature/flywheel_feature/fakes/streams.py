"""In-memory versions of the PostgreSQL adapters of ingest and erasure, for unit tests.

The contract tests run over them too. MemoryStreams: seen event ids, archived segments and positions,
generation (store/postgres/archive.py and generations.py). MemoryTombstones, MemoryPushLog,
MemoryMaterialized: as the adapters of those names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from flywheel_feature.ingest.archive import NewSegment
from flywheel_feature.ingest.tombstones import Tombstone, Tombstones
from flywheel_feature.tables.ports import SeenFile, Segment

Garbage = dict[str, None]
"""Keys of objects to delete, in order; the fakes of one test share it."""


class MemoryStreams:
    """Seen events, the archive and the generation of the online store."""

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
        position, last = 0, -1
        for event_id, offset in zip(event_ids, offsets, strict=True):
            position, last = (position + 1 if offset == last else 0), offset
            place = partition, offset, position
            answers.append(self._seen.setdefault((source, event_id), place) == place)
        return answers

    async def archived_offset(self, project: str, source: str, partition: int) -> int:
        return self._archived.get((project, source), {}).get(partition, (0, 0))[0]

    async def archived(self, project: str) -> dict[str, dict[int, tuple[int, int]]]:
        return {source: dict(offsets) for (p, source), offsets in self._archived.items() if p == project}

    async def archived_offsets(self, project: str, source: str) -> Mapping[int, int]:
        return {p: offset for p, (offset, _) in self._archived.get((project, source), {}).items()}

    async def segments(self, project: str, source: str) -> Sequence[Segment]:
        found = self._segments.get((project, source), [])
        return sorted(found, key=lambda s: (s.partition, s.first_offset))

    async def commit(self, segment: NewSegment) -> bool:
        s = segment
        key = s.source.project, s.source.id
        positions = self._archived.setdefault(key, {})
        # The first segment may begin at any offset, as Kafka may have deleted older events.
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
        for key, segments in self._segments.items():
            for segment in [s for s in segments if s.uri == uri]:
                segments.remove(segment)
                if events:
                    times = {"min_time": min_time, "max_time": max_time}
                    uri_of_new = f"s3://{self._bucket}/{new}"
                    segments.append(replace(segment, uri=uri_of_new, event_count=events, **times))
                offset, count = self._archived[key][segment.partition]
                self._archived[key][segment.partition] = offset, count - segment.event_count + events
                self._garbage[old] = None


class MemoryTombstones:
    """Tombstones of erased entities, and the objects to delete."""

    def __init__(self, garbage: Garbage) -> None:
        self._garbage = garbage
        self._tombstones: dict[str, dict[str, dict[bytes, Tombstone]]] = {}

    def of(self, project: str) -> Tombstones:
        return self._tombstones.get(project, {})

    async def put(self, project: str, entity: str, key_hash: bytes, tombstone: Tombstone) -> None:
        tombstones = self._tombstones.setdefault(project, {}).setdefault(entity, {})
        before = tombstones.get(key_hash, tombstone)
        tombstones[key_hash] = replace(tombstone, erased_at=max(tombstone.erased_at, before.erased_at))

    async def add_garbage(self, keys: list[str]) -> None:
        self._garbage.update(dict.fromkeys(keys))

    async def garbage(self) -> list[str]:
        return sorted(self._garbage)

    async def deleted(self, key: str) -> None:
        self._garbage.pop(key, None)


class MemoryPushLog:
    """The files of rows pushed to batch views."""

    def __init__(self, garbage: Garbage) -> None:
        self._garbage = garbage
        self._keys: dict[tuple[str, str], dict[int, str]] = {}
        self._last = 0

    async def add(self, project: str, view: str, key: str, rows: int) -> None:
        self._last += 1
        self._keys.setdefault((project, view), {})[self._last] = key

    async def keys(self, project: str, view: str) -> list[tuple[int, str]]:
        return sorted(self._keys.get((project, view), {}).items())

    async def replace(self, old: str, new: str, rows: int) -> None:
        self._garbage[old] = None
        for files in self._keys.values():
            for number in [n for n, key in files.items() if key == old]:
                if rows:
                    files[number] = new
                else:
                    del files[number]


ViewVersion = tuple[str, str, int]
"""(project, view id, version)."""


class MemoryMaterialized:
    """Newest materialized event times and seen files of view versions."""

    def __init__(self) -> None:
        self._newest: dict[ViewVersion, int] = {}
        self._seen: dict[ViewVersion, dict[str, SeenFile]] = {}

    async def newest(self, project: str) -> dict[tuple[str, int], int]:
        return {(view, version): t for (p, view, version), t in self._newest.items() if p == project}

    async def done(self, project: str, view: str, version: int, end_time: int, newest: int) -> None:
        key = project, view, version
        self._newest[key] = max(newest, self._newest.get(key, newest))

    async def seen(self, project: str, view: str, version: int) -> Mapping[str, SeenFile]:
        return dict(self._seen.get((project, view, version), {}))

    async def mark_seen(self, project: str, view: str, version: int, uri: str, seen: SeenFile) -> None:
        self._seen.setdefault((project, view, version), {})[uri] = seen

    async def mark_due(self, project: str, view: str, version: int, uri: str, later: SeenFile) -> None:
        files = self._seen.setdefault((project, view, version), {})
        before = files.get(uri, SeenFile(""))
        files[uri] = SeenFile(
            before.stamp,
            min(before.due or later.due, later.due),
            min(before.read_at or later.read_at, later.read_at),
        )

    async def due(self, now: int) -> Mapping[ViewVersion, int]:
        times = {
            key: [f.due for f in files.values() if 0 < f.due <= now] for key, files in self._seen.items()
        }
        return {key: min(found) for key, found in times.items() if found}

    async def forget_files(self, project: str, view: str, version: int) -> None:
        self._seen.pop((project, view, version), None)
