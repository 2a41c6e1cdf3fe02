"""The archive of stream sources: every event once in Parquet on S3, because training sets recompute features from it.

Rows gather per partition and leave as a segment when there are many, when they are old, or when nothing came for a moment. A
segment counts once PostgreSQL knows it, in the transaction that moves the partition's archived position from where the segment
begins; a file that lost this race is nobody's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import polars as pl

from flywheel_common.errors import FlywheelError
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.definitions.model import Source
from flywheel_feature.encoding.frames import to_frame
from flywheel_feature.ingest.stream_tiles import SourceRows
from flywheel_feature.ingest.tombstones import Erased

log = get_logger(__name__)

EVENT_ID = "__event_id"
EVENT_TIME = "__event_time"
EVENT_RANK = "__event_rank"
"""event_order.event_ranks of the id: what breaks ties of time, online and offline."""
PARTITION = "__partition"
OFFSET = "__offset"


@dataclass(frozen=True, slots=True)
class NewSegment:
    source: Source
    partition: int
    first_offset: int
    next_offset: int
    key: str
    """Object key; empty when the range holds no event (duplicates only)."""
    event_count: int
    min_time: int
    max_time: int


class SegmentStore(Protocol):
    async def commit(self, segment: NewSegment) -> bool:
        """Register and move the position in one transaction; False when the position is not at `first_offset`."""
        ...


class FrameWriter(Protocol):
    def bucket_uri(self, key: str) -> str: ...

    def write(self, uri: str, frame: pl.DataFrame) -> None: ...


@dataclass
class _Gathering:
    source: Source
    partition: int
    next_offset: int
    """Archived so far."""
    frames: list[pl.DataFrame] = field(default_factory=list)
    rows: int = 0
    end: int = 0
    """Next offset after what was gathered."""
    since: float = 0.0
    latest: float = 0.0


class Archiver:
    """Gathers rows and writes segments. `flush_rows` bounds the memory: `gather` then waits for the segment."""

    def __init__(
        self,
        segments: SegmentStore,
        writer: FrameWriter,
        new_id: Callable[[], str],
        erased: Erased,
        delete: Callable[[str], Awaitable[None]],
        *,
        flush_rows: int = 20_000,
        flush_seconds: float = 10.0,
        idle_seconds: float = 1.0,
    ) -> None:
        self._segments = segments
        self._writer = writer
        self._new_id = new_id
        self._erased = erased
        self._delete = delete
        self._flush_rows = flush_rows
        self._flush_seconds = flush_seconds
        self._idle_seconds = idle_seconds
        self._gathering: dict[tuple[str, int], _Gathering] = {}
        self._lock = asyncio.Lock()

    def begin(self, source: Source, partition: int, archived: int) -> None:
        """Start (again) at the stored position; what was gathered before is forgotten and will come again."""
        self._gathering[source.name, partition] = _Gathering(source, partition, archived, end=archived)

    async def gather(self, rows: SourceRows) -> None:
        """Take up rows without duplicates; those below what was gathered already are passed over."""
        held = self._gathering.get((rows.source.name, rows.partition))
        if held is None or rows.next_offset <= held.end:
            return
        fresh = rows.offset >= held.end
        if not fresh.all():
            rows = rows.take(fresh)
        now = time.monotonic()
        if held.rows == 0 and held.end == held.next_offset:
            held.since = now
        held.latest = now
        if len(rows.event_ids):
            held.frames.append(segment_frame(rows))
            held.rows += len(rows.event_ids)
        held.end = rows.next_offset
        if held.rows >= self._flush_rows:
            await self._flush(held)

    async def run(self) -> None:
        """Write what is old or idle until cancelled."""
        while True:
            await asyncio.sleep(self._idle_seconds / 4)
            now = time.monotonic()
            for held in list(self._gathering.values()):
                due = now - held.latest >= self._idle_seconds or now - held.since >= self._flush_seconds
                if held.end > held.next_offset and due:
                    try:
                        await self._flush(held)
                    except FlywheelError as error:
                        log.warning("archive waits", source=held.source.name, reason=error.reason)

    async def flush_all(self) -> None:
        """Write everything gathered, for a clean end."""
        for held in list(self._gathering.values()):
            if held.end > held.next_offset:
                await self._flush(held)

    async def _flush(self, held: _Gathering) -> None:
        async with self._lock:
            if (
                self._gathering.get((held.source.name, held.partition)) is not held
                or held.end <= held.next_offset
            ):
                return
            frames, first, end = list(held.frames), held.next_offset, held.end
            rows = sum(f.height for f in frames)
            segment = await self._write(held, frames, first, end)
            committed = await self._segments.commit(segment)
            if not committed and segment.key:
                await self._delete(segment.key)
            if self._gathering.get((held.source.name, held.partition)) is not held:
                return
            if not committed:
                # Another member archives this partition now.
                del self._gathering[held.source.name, held.partition]
                log.warning(
                    "segment dropped", source=held.source.name, partition=held.partition, first_offset=first
                )
                return
            del held.frames[: len(frames)]
            held.rows -= rows
            held.next_offset = end
            held.since = time.monotonic()

    async def _write(self, held: _Gathering, frames: list[pl.DataFrame], first: int, end: int) -> NewSegment:
        source = held.source
        # Whoever was erased since these rows were gathered is left out here.
        kept = [self._erased.frame(source, held.partition, OFFSET, f) for f in frames]
        frame = pl.concat(kept) if kept else pl.DataFrame()
        if not frame.height:
            return NewSegment(source, held.partition, first, end, "", 0, 0, 0)
        key = (
            f"sources/{source.project}/{source.id}/{held.partition:05d}-{first:020d}-{self._new_id()}.parquet"
        )
        await asyncio.to_thread(self._writer.write, self._writer.bucket_uri(key), frame)
        times = frame.get_column(EVENT_TIME).dt.epoch("us")
        low, high = times.min(), times.max()
        assert isinstance(low, int)
        assert isinstance(high, int)
        return NewSegment(source, held.partition, first, end, key, frame.height, low, high)


def segment_frame(rows: SourceRows) -> pl.DataFrame:
    """Rows as they are archived: the schema's columns, then what Flywheel knows about each event."""
    frame = to_frame(list(rows.source.schema), rows.columns, len(rows.event_ids))
    event, _ = rows.times()
    return frame.with_columns(
        pl.Series(EVENT_ID, list(rows.event_ids), dtype=pl.String),
        pl.Series(EVENT_TIME, event).cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
        pl.Series(EVENT_RANK, rows.ranks),
        pl.lit(rows.partition, dtype=pl.Int32).alias(PARTITION),
        pl.Series(OFFSET, rows.offset),
    )
