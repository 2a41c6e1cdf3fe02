"""The stream worker: records of a partition → rows without duplicates → tiles and archive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from prometheus_client import Counter, Gauge

from flywheel_common.logs import get_logger
from flywheel_feature.aggregation import Ints
from flywheel_feature.archiving import Archiver
from flywheel_feature.catalog import Catalog
from flywheel_feature.definitions import Source, View
from flywheel_feature.frames import Columns
from flywheel_feature.stream_tiles import PositionLost, SourceRows, SourceTiles, ViewTiles

log = get_logger(__name__)

_ROWS = Counter("flywheel_feature_stream_rows", "Rows of stream sources", ["source", "result"])
_NEWEST = Gauge("flywheel_feature_watermark_seconds", "Newest event time applied, Unix seconds", ["source"])


class SeenEvents(Protocol):
    async def first_seen(
        self, source: str, event_ids: Sequence[str], partition: int, offsets: Sequence[int]
    ) -> list[bool]:
        """Per row whether this place is where its id was seen first; remembers the ids not seen before.

        Rows come in order; the answer for a place never changes. Raises Unavailable.
        """
        ...


class ArchivePositions(Protocol):
    async def archived_offset(self, project: str, source: str, partition: int) -> int: ...


class StreamMaterializer:
    """One member's work. `begin` before the first rows of a partition and after every loss of it."""

    def __init__(
        self, seen: SeenEvents, archived: ArchivePositions, tiles: SourceTiles, archiver: Archiver
    ) -> None:
        self._seen = seen
        self._archived = archived
        self._tiles = tiles
        self._archiver = archiver

    async def begin(self, catalog: Catalog, source: Source, partition: int) -> int:
        """The offset from which this partition must be read."""
        archived = await self._archived.archived_offset(source.project, source.id, partition)
        self._archiver.begin(source, partition, archived)
        needed = await self._tiles.load(source, partition, catalog.stream_views(source.id))
        return archived if needed < 0 else min(archived, needed)

    async def apply(self, catalog: Catalog, rows: SourceRows) -> None:
        """One effect per event, however often and in whatever cuts the rows come. Raises PositionLost."""
        offsets = rows.offset.tolist()
        if offsets:
            first = np.array(
                await self._seen.first_seen(rows.source.name, rows.event_ids, rows.partition, offsets),
                np.bool_,
            )
            if not first.all():
                _ROWS.labels(rows.source.id, "duplicate").inc(int((~first).sum()))
                rows = rows.take(first)
        await self._tiles.apply(rows, self._views(catalog, rows.source))
        await self._archiver.gather(rows)
        if len(rows.event_ids):
            _ROWS.labels(rows.source.id, "applied").inc(len(rows.event_ids))
            _NEWEST.labels(rows.source.id).set(int(rows.times()[0].max()) / 1e6)

    def _views(self, catalog: Catalog, source: Source) -> list[ViewTiles]:
        views: list[View] = catalog.stream_views(source.id)
        return self._tiles.views(source, views, {v.entity: catalog.entity(v.entity).join_keys for v in views})


Part = tuple[Ints, Columns, Sequence[str]]
"""Rows of one or more records: the offset each row came in, columns, ids."""


def joined(source: Source, partition: int, parts: Sequence[Part], next_offset: int) -> SourceRows:
    """Rows of several parts as one."""
    if len(parts) == 1:
        offsets, columns, ids = parts[0]
        return SourceRows(source, partition, columns, list(ids), offsets, next_offset)
    offsets = np.concatenate([p[0] for p in parts])
    columns = {
        f.name: (
            np.concatenate([p[1][f.name][0] for p in parts]),
            np.concatenate([p[1][f.name][1] for p in parts]),
        )
        for f in source.schema
    }
    return SourceRows(source, partition, columns, [i for p in parts for i in p[2]], offsets, next_offset)


__all__ = ["Part", "PositionLost", "StreamMaterializer", "joined"]
