"""The archive of stream sources, from which training sets are computed: every event once, in Parquet on S3.

Rows are buffered per partition and written as a segment when they are many, when they are old, or when no row
arrived for a moment. A segment belongs to the archive once PostgreSQL has it: one transaction registers it
and moves the partition's archived position from the segment's first offset to its end. The file of a segment
that lost this race is deleted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import polars as pl

from flywheel_common.errors import FlywheelError
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.definitions.model import Source
from flywheel_feature.encoding.frames import to_frame
from flywheel_feature.ingest.source_rows import SourceRows
from flywheel_feature.ingest.tombstones import TombstoneFilter
from flywheel_feature.tables.ports import FrameWriter, Segment

log = get_logger(__name__)

EVENT_ID = "__event_id"
ARRIVED = "__arrived"
EVENT_TIME = "__event_time"
EVENT_RANK = "__event_rank"
"""event_order.event_ranks of the id: orders events of equal times, online and offline."""
PARTITION = "__partition"
OFFSET = "__offset"


@dataclass(frozen=True, slots=True)
class NewSegment:
    """A segment to commit."""

    source: Source
    partition: int
    first_offset: int
    next_offset: int
    key: str
    """Object key; empty when the range holds duplicates only."""
    event_count: int
    min_time: int
    max_time: int


class EventArchive(Protocol):
    """The segments of every stream source and the archived positions. Raises Unavailable."""

    async def commit(self, segment: NewSegment) -> bool:
        """Register a segment and move the position, in one transaction.

        Returns False and changes nothing when the position is not at `first_offset`. A partition without a
        position takes that of its first segment.
        """
        ...

    async def replace_segment(self, old: str, new: str, events: int, min_time: int, max_time: int) -> None:
        """Put the object `new` (a key) in the place of `old`, which becomes garbage; none for no events."""
        ...

    async def segments(self, project: str, source: str) -> Sequence[Segment]:
        """The committed segments, by partition and offset."""
        ...

    async def archived_offset(self, project: str, source: str, partition: int) -> int:
        """The archived position of a partition: every event below it is archived. 0 for a new partition."""
        ...

    async def archived_offsets(self, project: str, source: str) -> Mapping[int, int]:
        """Partition → archived position."""
        ...

    async def archived(self, project: str) -> dict[str, dict[int, tuple[int, int]]]:
        """Source id → partition → (archived position, events archived)."""
        ...


@dataclass
class _Buffer:
    """Rows of a partition that are not archived yet."""

    source: Source
    partition: int
    next_offset: int
    """The archived position."""
    frames: list[pl.DataFrame] = field(default_factory=list)
    rows: int = 0
    end: int = 0
    """Next offset after the buffered rows."""
    since: float = 0.0
    """When the first row arrived."""
    latest: float = 0.0


class Archiver:
    """Buffers rows and writes segments.

    At `flush_rows` rows, `gather` waits until the segment is written; that bounds the memory.
    """

    def __init__(
        self,
        segments: EventArchive,
        writer: FrameWriter,
        new_id: Callable[[], str],
        tombstones: TombstoneFilter,
        delete: Callable[[str], Awaitable[None]],
        *,
        flush_rows: int = 20_000,
        flush_seconds: float = 10.0,
        idle_seconds: float = 1.0,
    ) -> None:
        self._segments = segments
        self._writer = writer
        self._new_id = new_id
        self._tombstones = tombstones
        self._delete = delete
        self._flush_rows = flush_rows
        self._flush_seconds = flush_seconds
        self._idle_seconds = idle_seconds
        self._buffers: dict[tuple[str, int], _Buffer] = {}
        self._lock = asyncio.Lock()
        self._on_lost: Callable[[Source, int], None] | None = None

    def on_lost(self, listener: Callable[[Source, int], None]) -> None:
        """Call `listener(source, partition)` when the archived position was moved by another process: rows
        that were buffered here are dropped, and the partition must begin again."""
        self._on_lost = listener

    def begin(self, source: Source, partition: int, archived: int) -> None:
        """Start a partition at its stored position; buffered rows are dropped and will be read again."""
        self._buffers[source.name, partition] = _Buffer(source, partition, archived, end=archived)

    async def end(self, source: Source, partition: int) -> None:
        """Write what is buffered of a partition that another process takes over."""
        buffer = self._buffers.get((source.name, partition))
        if buffer is None:
            return
        try:
            await self._flush(buffer)
        finally:
            # A later write here would race with that process.
            if self._is_current(buffer):
                del self._buffers[source.name, partition]

    async def gather(self, rows: SourceRows) -> None:
        """Buffer rows without duplicates; rows that are buffered or archived already are skipped."""
        buffer = self._buffers.get((rows.source.name, rows.partition))
        if buffer is None or rows.next_offset <= buffer.end:
            return
        fresh = rows.offset >= buffer.end
        if not fresh.all():
            rows = rows.take(fresh)
        now = time.monotonic()
        if buffer.rows == 0 and buffer.end == buffer.next_offset:
            buffer.since = now
        buffer.latest = now
        if len(rows.event_ids):
            buffer.frames.append(segment_frame(rows))
            buffer.rows += len(rows.event_ids)
        buffer.end = rows.next_offset
        if buffer.rows >= self._flush_rows:
            await self._flush(buffer)

    async def run(self) -> None:
        """Write segments of old or idle buffers until cancelled."""
        while True:
            await asyncio.sleep(self._idle_seconds / 4)
            now = time.monotonic()
            for buffer in list(self._buffers.values()):
                due = now - buffer.latest >= self._idle_seconds or now - buffer.since >= self._flush_seconds
                if buffer.end > buffer.next_offset and due:
                    try:
                        await self._flush(buffer)
                    except FlywheelError as error:
                        log.warning(
                            "segment not written; it is tried again",
                            source=buffer.source.name,
                            reason=error.reason,
                        )

    async def flush_all(self) -> None:
        """Write every buffer as a segment, before a shutdown."""
        for buffer in list(self._buffers.values()):
            if buffer.end > buffer.next_offset:
                await self._flush(buffer)

    async def _flush(self, buffer: _Buffer) -> None:
        async with self._lock:
            if not self._is_current(buffer) or buffer.end <= buffer.next_offset:
                return
            frames, first, end = list(buffer.frames), buffer.next_offset, buffer.end
            rows = sum(f.height for f in frames)
            segment = await self._write(buffer, frames, first, end)
            committed = await self._segments.commit(segment)
            if not committed and segment.key:
                await self._delete(segment.key)
            if not self._is_current(buffer):
                return
            if not committed:
                # Another process archives this partition now.
                del self._buffers[buffer.source.name, buffer.partition]
                log.warning(
                    "segment dropped: another process archives the partition",
                    source=buffer.source.name,
                    partition=buffer.partition,
                    first_offset=first,
                )
                if self._on_lost is not None:
                    self._on_lost(buffer.source, buffer.partition)
                return
            del buffer.frames[: len(frames)]
            buffer.rows -= rows
            buffer.next_offset = end
            buffer.since = time.monotonic()

    def _is_current(self, buffer: _Buffer) -> bool:
        """Whether the partition was not started anew since."""
        return self._buffers.get((buffer.source.name, buffer.partition)) is buffer

    async def _write(self, buffer: _Buffer, frames: list[pl.DataFrame], first: int, end: int) -> NewSegment:
        source = buffer.source
        # Entities may have been erased since these rows were buffered.
        kept = [self._tombstones.frame(source, buffer.partition, OFFSET, f) for f in frames]
        frame = pl.concat(kept) if kept else pl.DataFrame()
        if not frame.height:
            return NewSegment(source, buffer.partition, first, end, "", 0, 0, 0)
        name = f"{buffer.partition:05d}-{first:020d}-{self._new_id()}.parquet"
        key = f"sources/{source.project}/{source.id}/{name}"
        await asyncio.to_thread(self._writer.write, self._writer.bucket_uri(key), frame)
        times = frame.get_column(EVENT_TIME).dt.epoch("us")
        low, high = times.min(), times.max()
        assert isinstance(low, int)
        assert isinstance(high, int)
        return NewSegment(source, buffer.partition, first, end, key, frame.height, low, high)


def segment_frame(rows: SourceRows) -> pl.DataFrame:
    """The rows of a segment: the schema's columns and each event's id, time, rank, position, arrival."""
    frame = to_frame(list(rows.source.schema), rows.columns, len(rows.event_ids))
    event, _ = rows.times()
    arrived = np.zeros(len(event), np.int64) if rows.arrived is None else rows.arrived
    return frame.with_columns(
        pl.Series(EVENT_ID, list(rows.event_ids), dtype=pl.String),
        pl.Series(EVENT_TIME, event).cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
        pl.Series(EVENT_RANK, rows.ranks),
        pl.lit(rows.partition, dtype=pl.Int32).alias(PARTITION),
        pl.Series(OFFSET, rows.offset),
        pl.Series(ARRIVED, arrived, dtype=pl.Int64),
    )
