"""The stream worker: records of a partition → rows without duplicates → tiles and archive."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from prometheus_client import Counter, Gauge

from flywheel_common.arrays import Ints
from flywheel_common.errors import NotFound, Unavailable
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import Source, View
from flywheel_feature.encoding.frames import Columns
from flywheel_feature.ingest.archive import Archiver
from flywheel_feature.ingest.archive_replay import ArchiveReplay
from flywheel_feature.ingest.generations import Generations
from flywheel_feature.ingest.stream_tiles import PositionLost, SourceRows, SourceTiles, ViewTiles
from flywheel_feature.ingest.tombstones import TombstoneFilter

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


class TileFiller:
    """Brings the tiles of a partition to where its archive ends, from the archive alone: after Redis lost
    data, for a view that is new, and in a rebuild. Any number of members may do it at once: of two that move
    the same position one begins again."""

    ATTEMPTS = 20

    def __init__(
        self, generations: Generations, replay: ArchiveReplay, tiles: SourceTiles, erased: TombstoneFilter
    ) -> None:
        self._generations = generations
        self._replay = replay
        self._tiles = tiles
        self._erased = erased

    async def fill(self, catalog: Catalog, source: Source, partition: int, archived: int) -> int:
        """Afterwards every live view has applied the partition up to `archived` at least; the generation it
        is in.

        Raises Unavailable POSITIONS_CONTESTED.
        """
        for attempt in range(self.ATTEMPTS):
            generation = await self._generations.current()
            needed = await self._tiles.load(source, partition, catalog.stream_views(source.id), generation)
            if needed < 0 or needed >= archived:
                return generation
            log.info(
                "tiles are filled from the archive",
                source=source.name,
                partition=partition,
                first_offset=needed,
                end=archived,
            )
            try:
                async for rows in self._replay.rows(source, partition, needed, archived):
                    await self._tiles.apply(self.without_erased(rows), self.views(catalog, source))
            except PositionLost:
                await asyncio.sleep(0.05 * attempt)
            except NotFound as error:
                log.warning("a segment was replaced", source=source.name, reason=error.reason)
                await asyncio.sleep(0.05 * attempt)
            else:
                return generation
        raise Unavailable(
            f"Others are moving the positions of {source.name}: try again.", reason="POSITIONS_CONTESTED"
        )

    def views(self, catalog: Catalog, source: Source) -> list[ViewTiles]:
        views: list[View] = catalog.stream_views(source.id)
        return self._tiles.views(source, views, {v.entity: catalog.entity(v.entity).join_keys for v in views})

    def without_erased(self, rows: SourceRows) -> SourceRows:
        kept = self._erased.events(rows.source, rows.partition, rows.offset, rows.columns)
        return rows if kept is None else rows.take(kept)


class StreamMaterializer:
    """One member's work. `begin` before the first rows of a partition and after every loss of it."""

    def __init__(
        self,
        seen: SeenEvents,
        archived: ArchivePositions,
        tiles: SourceTiles,
        archiver: Archiver,
        filling: TileFiller,
    ) -> None:
        self._seen = seen
        self._archived = archived
        self._tiles = tiles
        self._archiver = archiver
        self._filling = filling
        self.generation = 0
        """The generation of the online store that this member works in."""

    async def begin(self, catalog: Catalog, source: Source, partition: int) -> int:
        """The offset from which this partition must be read: what is archived comes from the archive."""
        archived = await self._archived.archived_offset(source.project, source.id, partition)
        self._archiver.begin(source, partition, archived)
        self.generation = await self._filling.fill(catalog, source, partition, archived)
        return archived

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
        rows = self._filling.without_erased(rows)
        await self._tiles.apply(rows, self._filling.views(catalog, rows.source))
        await self._archiver.gather(rows)
        if len(rows.event_ids):
            _ROWS.labels(rows.source.id, "applied").inc(len(rows.event_ids))
            _NEWEST.labels(rows.source.id).set(int(rows.times()[0].max()) / 1e6)


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
