"""GetFreshness: how far sources and views are applied, from stored positions. Cheap, because it is polled."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from flywheel_common.errors import Unavailable
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import BatchView, Source, StreamView, View
from flywheel_feature.ingest.archive import EventArchive
from flywheel_feature.ingest.ports import Materialized
from flywheel_feature.ingest.tile_store import Position, TileStore, position_field


@dataclass(frozen=True, slots=True)
class Freshness:
    """Freshness of a source or a view; times in microseconds, 0: none."""

    name: str
    watermark: int = 0
    applied: Mapping[int, int] = field(default_factory=dict)
    """Stream sources: partition → next offset; every event below it is online in all views."""
    lag_events: int = 0
    """Records that are not applied: of the stream, or to the view."""
    waiting_since: int = 0
    """When Kafka stored the oldest of these records."""
    archived_events: int = 0
    freshness_sla: int = 0


class TopicEnds(Protocol):
    """The records of the topics of stream sources. Raises Unavailable while Kafka is down."""

    async def end_offsets(self, project: str, source: str) -> Mapping[int, int]:
        """Partition → end of the topic now."""
        ...

    async def recent_end_offsets(self, project: str, source: str) -> Mapping[int, int]:
        """Partition → end of the topic a moment ago; empty when there is no topic."""
        ...

    async def stored_since(self, project: str, source: str, offsets: Mapping[int, int]) -> int:
        """When the first record at or after these offsets (partition → offset) was stored, in microseconds.

        0 when there is none. The answer may be a moment old.
        """
        ...


class FreshnessReader:
    """Reads the freshness of every source and view of a project."""

    def __init__(
        self, tiles: TileStore, archive: EventArchive, materialized: Materialized, ends: TopicEnds
    ) -> None:
        self._tiles = tiles
        self._archive = archive
        self._materialized = materialized
        self._ends = ends

    async def read(self, catalog: Catalog) -> list[Freshness]:
        """Sources by name, then views by name."""
        streams = [s for s in catalog.sources.values() if s.is_stream]
        archived, newest, positions = await asyncio.gather(
            self._archive.archived(catalog.project),
            self._materialized.newest(catalog.project),
            asyncio.gather(*(self._tiles.positions(catalog.project, s.id) for s in streams)),
        )
        by_source: dict[str, dict[str, str]] = dict(zip((s.id for s in streams), positions, strict=True))
        found = await asyncio.gather(
            *(self._source(catalog, s, by_source[s.id], archived.get(s.id, {})) for s in streams)
        )
        streamed = {s.id: (f, ends) for s, (f, ends) in zip(streams, found, strict=True)}
        views = [_view(v, by_source, newest, streamed) for v in catalog.latest_views.values()]
        sources = [f for f, _ in found]
        return sorted(sources, key=lambda f: f.name) + sorted(
            (v for v in views if v is not None), key=lambda f: f.name
        )

    async def _source(
        self,
        catalog: Catalog,
        source: Source,
        positions: Mapping[str, str],
        archived: Mapping[int, tuple[int, int]],
    ) -> tuple[Freshness, Mapping[int, int]]:
        """The freshness of a source, and the ends of its topic."""
        views = catalog.stream_views(source.id)
        partitions = set(archived) | {int(f.rpartition("/")[2]) for f in positions}
        applied: dict[int, int] = {}
        watermark = 0
        for partition in sorted(partitions):
            stored = [positions.get(position_field(v.ref, partition), "0") for v in views]
            found = [Position.parse(text) for text in stored]
            # Events of a source that no view reads are applied when they are archived.
            applied[partition] = min(
                (p.next_offset for p in found), default=archived.get(partition, (0, 0))[0]
            )
            watermark = max(watermark, *(p.watermark for p in found), 0)
        since = 0
        try:
            ends = await self._ends.recent_end_offsets(source.project, source.id)
            waiting = _waiting(ends, applied)
            if waiting:
                since = await self._ends.stored_since(source.project, source.id, waiting)
        except Unavailable:
            ends = {}
        lag = sum(ends[p] - applied.get(p, 0) for p in _waiting(ends, applied))
        events = sum(n for _, n in archived.values())
        return Freshness(source.name, watermark, applied, lag, since, events), ends


def _waiting(ends: Mapping[int, int], applied: Mapping[int, int]) -> dict[int, int]:
    """Partition → applied position, of those with records that are not applied."""
    return {p: applied.get(p, 0) for p, end in ends.items() if end > applied.get(p, 0)}


def _view(
    view: View,
    by_source: Mapping[str, Mapping[str, str]],
    newest: Mapping[tuple[str, int], int],
    streams: Mapping[str, tuple[Freshness, Mapping[int, int]]],
) -> Freshness | None:
    lag = since = 0
    match view.kind:
        case BatchView():
            watermark = newest.get((view.id, view.version), 0)
        case StreamView(source=source):
            prefix = f"{view.id}@{view.version}/"
            positions = {
                int(f.removeprefix(prefix)): Position.parse(t)
                for f, t in by_source.get(source, {}).items()
                if f.startswith(prefix)
            }
            watermark = max((p.watermark for p in positions.values()), default=0)
            if source in streams:
                stream, ends = streams[source]
                applied = {p: position.next_offset for p, position in positions.items()}
                lag = sum(ends[p] - applied.get(p, 0) for p in _waiting(ends, applied))
                # The views of a source move together; the slowest one tells how long events wait.
                since = stream.waiting_since if lag else 0
        case _:
            return None
    return Freshness(
        view.base_name, watermark, lag_events=lag, waiting_since=since, freshness_sla=view.freshness_sla
    )
