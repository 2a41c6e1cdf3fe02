"""Reads events from the archive, to refill tiles when Kafka no longer has the events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import polars as pl

from flywheel_feature.definitions.frame_types import converted
from flywheel_feature.definitions.model import Source
from flywheel_feature.encoding.frames import Columns, from_series
from flywheel_feature.ingest.archive import ARRIVED, EVENT_ID, OFFSET, EventArchive
from flywheel_feature.ingest.source_rows import SourceRows
from flywheel_feature.tables.ports import Segment

BATCH_EVENTS = 40_000
"""Events read in one batch, unless one segment has more."""
APPLIED_EVENTS = 4_000
"""Events applied at once. They block the event loop, which also answers requests."""


class FileReader(Protocol):
    """The part of tables.ports.Tables that a replay needs."""

    def read_files(self, uris: Sequence[str], columns: Sequence[str]) -> pl.DataFrame:
        """Rows of Parquet files, in this order; blocks."""
        ...


class ArchiveReplay:
    """Reads archived events of a source in the batches in which tiles are filled."""

    def __init__(self, segments: EventArchive, files: FileReader) -> None:
        self._segments = segments
        self._files = files

    async def partitions(self, source: Source) -> dict[int, int]:
        """Partition → archived position."""
        return dict(sorted((await self._segments.archived_offsets(source.project, source.id)).items()))

    async def rows(self, source: Source, partition: int, first: int, end: int) -> AsyncIterator[SourceRows]:
        """Events of a partition from offset `first`, in order, in batches; the last batch ends at `end`.

        Raises NotFound UNKNOWN_TABLE when a segment is replaced meanwhile: start again where the last batch
        ended.
        """
        segments = [
            s
            for s in await self._segments.segments(source.project, source.id)
            if s.partition == partition and s.next_offset > first
        ]
        names = [f.name for f in source.schema]
        group: list[Segment] = []
        for segment in [*segments, None]:
            is_full = (
                segment is None or sum(s.event_count for s in group) + segment.event_count > BATCH_EVENTS
            )
            if group and is_full:
                frame = await asyncio.to_thread(
                    self._files.read_files, [s.uri for s in group], [*names, EVENT_ID, OFFSET, ARRIVED]
                )
                for part in cut(source_rows(source, partition, frame, group[-1].next_offset)):
                    yield part
                group = []
            if segment is not None:
                group.append(segment)
        yield source_rows(source, partition, None, end)


def cut(rows: SourceRows) -> Iterator[SourceRows]:
    """Parts of about APPLIED_EVENTS rows; rows of one record stay together."""
    offset, start = rows.offset, 0
    while start < len(offset):
        end = min(start + APPLIED_EVENTS, len(offset))
        end = int(np.searchsorted(offset, offset[end - 1], "right"))
        following = int(offset[end]) if end < len(offset) else rows.next_offset
        yield replace(rows.take(np.arange(start, end)), next_offset=following)
        start = end


def source_rows(source: Source, partition: int, frame: pl.DataFrame | None, next_offset: int) -> SourceRows:
    """Archived rows as arrays; no rows for None."""
    if frame is None:
        empty = pl.DataFrame({f.name: [] for f in source.schema})
        numbers = [pl.lit(0, pl.Int64).alias(name) for name in (OFFSET, ARRIVED)]
        frame = empty.with_columns(pl.lit("").alias(EVENT_ID), *numbers).clear()
    columns: Columns = {
        f.name: from_series(converted(frame, f.name, f.data_type, f.vector_size), f.data_type)
        for f in source.schema
    }
    ids = frame.get_column(EVENT_ID).to_list()
    offset = frame.get_column(OFFSET).to_numpy()
    arrived = frame.get_column(ARRIVED).cast(pl.Int64).fill_null(0).to_numpy()
    return SourceRows(source, partition, columns, ids, offset, next_offset, arrived)
