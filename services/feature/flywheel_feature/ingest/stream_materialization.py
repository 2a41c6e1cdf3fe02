"""Materializing streams: rows of a partition, without duplicates, go to tiles and to the archive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from prometheus_client import Counter, Gauge

from flywheel_common.errors import NotFound
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import Source, View
from flywheel_feature.ingest.archive import Archiver, EventArchive
from flywheel_feature.ingest.archive_replay import ArchiveReplay
from flywheel_feature.ingest.errors import PositionsContested
from flywheel_feature.ingest.generations import Generations
from flywheel_feature.ingest.source_rows import SourceRows
from flywheel_feature.ingest.stream_tiles import SourceTiles, ViewTiles
from flywheel_feature.ingest.tile_store import PositionLost
from flywheel_feature.ingest.tombstones import TombstoneFilter

log = get_logger(__name__)

_ROWS = Counter("flywheel_feature_stream_rows", "Rows of stream sources", ["source", "result"])
_NEWEST = Gauge("flywheel_feature_watermark_seconds", "Newest event time applied, Unix seconds", ["source"])


class SeenEvents(Protocol):
    """The place where each event id was seen first. Raises Unavailable."""

    async def first_seen(
        self, source: str, event_ids: Sequence[str], partition: int, offsets: Sequence[int]
    ) -> list[bool]:
        """Per row whether its id was first seen at this place; stores the ids that are new.

        Rows are in order of their offsets. The answer for a place never changes.
        """
        ...


class TileFiller:
    """Fills the tiles of a partition from the archive, up to the archived position.

    It is used after Redis lost data, for a new view, and in a rebuild. Any number of processes may fill at
    once: of two that move the same position, one starts again.
    """

    ATTEMPTS = 20

    def __init__(
        self, generations: Generations, replay: ArchiveReplay, tiles: SourceTiles, tombstones: TombstoneFilter
    ) -> None:
        self._generations = generations
        self._replay = replay
        self._tiles = tiles
        self._tombstones = tombstones

    async def fill(self, catalog: Catalog, source: Source, partition: int, archived: int) -> int:
        """Fill until every live view has applied the partition up to `archived`; returns the generation.

        Raises PositionsContested.
        """
        for attempt in range(self.ATTEMPTS):
            generation = await self._generations.current()
            needed = await self._tiles.load(source, partition, catalog.stream_views(source.id), generation)
            if needed < 0 or needed >= archived:
                return generation
            log.info(
                "filling tiles from the archive",
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
                log.warning(
                    "a segment was replaced; filling starts again", source=source.name, reason=error.reason
                )
                await asyncio.sleep(0.05 * attempt)
            else:
                return generation
        raise PositionsContested(f"Other processes are moving the positions of {source.name}: try again.")

    def views(self, catalog: Catalog, source: Source) -> list[ViewTiles]:
        """The live stream views of a source."""
        views: list[View] = catalog.stream_views(source.id)
        return self._tiles.views(source, views, {v.entity: catalog.entity(v.entity).join_keys for v in views})

    def without_erased(self, rows: SourceRows) -> SourceRows:
        kept = self._tombstones.events(rows.source, rows.partition, rows.offset, rows.columns)
        return rows if kept is None else rows.take(kept)


class StreamMaterializer:
    """Applies the rows of the partitions that this process reads.

    `begin` is called before the first rows of a partition, and again after the process lost it.
    """

    def __init__(
        self,
        seen: SeenEvents,
        archive: EventArchive,
        tiles: SourceTiles,
        archiver: Archiver,
        filler: TileFiller,
    ) -> None:
        self._seen = seen
        self._archive = archive
        self._tiles = tiles
        self._archiver = archiver
        self._filler = filler

    async def begin(self, catalog: Catalog, source: Source, partition: int) -> int:
        """Fill the tiles from the archive; returns the offset from which the partition must be read."""
        archived = await self._archive.archived_offset(source.project, source.id, partition)
        self._archiver.begin(source, partition, archived)
        await self._filler.fill(catalog, source, partition, archived)
        return archived

    def generation(self, source: Source, partition: int) -> int:
        """The generation of the online store in which a partition began; 0 before its first begin."""
        return self._tiles.generation(source, partition)

    async def skip(self, catalog: Catalog, source: Source, partition: int, next_offset: int) -> None:
        """Move the positions past records that hold no rows to apply. Raises PositionLost."""
        rows = SourceRows(source, partition, {}, [], np.zeros(0, np.int64), next_offset)
        await self._tiles.apply(rows, self._filler.views(catalog, source))
        await self._archiver.gather(rows)

    async def end(self, source: Source, partition: int) -> None:
        """Archive what was applied of a partition that another process takes over."""
        await self._archiver.end(source, partition)

    def on_lost(self, listener: Callable[[Source, int], None]) -> None:
        """Call `listener(source, partition)` for a partition that must begin again (Archiver.on_lost)."""
        self._archiver.on_lost(listener)

    async def apply(self, catalog: Catalog, rows: SourceRows) -> None:
        """Apply rows; each event takes effect once, however often and in whatever batches it arrives.

        Raises PositionLost.
        """
        offsets = rows.offset.tolist()
        if offsets:
            first = np.array(
                await self._seen.first_seen(rows.source.name, rows.event_ids, rows.partition, offsets),
                np.bool_,
            )
            if not first.all():
                _ROWS.labels(rows.source.id, "duplicate").inc(int((~first).sum()))
                rows = rows.take(first)
        rows = self._filler.without_erased(rows)
        await self._tiles.apply(rows, self._filler.views(catalog, rows.source))
        await self._archiver.gather(rows)
        if len(rows.event_ids):
            _ROWS.labels(rows.source.id, "applied").inc(len(rows.event_ids))
            _NEWEST.labels(rows.source.id).set(int(rows.times()[0].max()) / 1e6)


"""Rows of one or more records: the offset of each row's record, columns, event ids."""
