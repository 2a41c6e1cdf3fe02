"""The archive of the prediction log in S3: each row exactly once, also after crashes.

Batches wait in the store, queued by the transaction that counted them. First a segment is cut from them, then
its objects are written under keys that contain its id, then it is completed and its batches are deleted.
After a crash the same bytes are written under the same keys, so that no row is in two objects. Readers may
list the prefix.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from flywheel_common.errors import FlywheelError
from flywheel_common.postgres.transactions import Store
from flywheel_common.storage.objects import ObjectStore
from flywheel_common.telemetry.logs import get_logger
from flywheel_monitor.archive.metrics import ArchiveMetrics
from flywheel_monitor.archive.parquet import batch_table, by_day, joined, to_parquet
from flywheel_monitor.archive.ports import ArchiveQueue
from flywheel_monitor.archive.queue import Segment, unpack_kept
from flywheel_monitor.models.names import ModelName, VersionName
from flywheel_protos.events.v1 import prediction_pb2

log = get_logger(__name__)
DEAD_LETTER = "-dead-letter"
"""Suffix of the prefix below which rows lie whose column types conflict with the rest of their segment."""
CONFLICT = "the types of its columns conflict with the other rows of the segment"


@dataclass(frozen=True)
class ArchiveSettings:
    """`prefix` has no slash at its end. A segment is cut when `rows` wait, after `idle_seconds` without a
    new batch, or when the oldest batch is `age_seconds` old."""

    bucket: str
    prefix: str = "predictions"
    rows: int = 50_000
    idle_seconds: float = 1.0
    age_seconds: float = 30.0
    poll_seconds: float = 0.5


class PredictionArchive:
    """Writes the archive (`run`, under a lease) and says what it contains (`status`, anywhere)."""

    def __init__(
        self,
        store: Store[ArchiveQueue],
        objects: ObjectStore,
        settings: ArchiveSettings,
        metrics: ArchiveMetrics,
    ) -> None:
        self._store = store
        self._objects = objects
        self._settings = settings
        self._metrics = metrics

    def uri(self, model: str) -> str:
        """Prefix of a model's log: `s3://bucket/predictions/<project>/<model>/`."""
        return f"s3://{self._settings.bucket}/{self._folder(model)}/"

    async def status(self, model: str) -> tuple[int, int | None]:
        """(rows in completed segments, newest event time among them in microseconds)."""
        async with self._store.reading() as records:
            return await records.archived(model)

    async def run(self) -> None:
        """Archive forever; continues after outages of S3 and of the store."""
        while True:
            try:
                await self.pass_once()
            except FlywheelError as error:
                if not error.retryable:
                    raise
                log.warning("archive waits for a dependency", reason=error.reason)
                await asyncio.sleep(2.0)
            await asyncio.sleep(self._settings.poll_seconds)

    async def pass_once(self, *, now: bool = False) -> int:
        """Cut segments that are due (`now`: from all waiting batches) and complete pending ones; returns
        how many were completed."""
        await self._cut(now)
        async with self._store.reading() as records:
            pending = await records.pending_segments()
        for segment in pending:
            await self._write(segment)
        return len(pending)

    async def _cut(self, now: bool) -> None:
        limits = self._settings
        async with self._store.reading() as records:
            waiting = await records.waiting()
        self._metrics.waiting(sum(w.rows for w in waiting))
        for w in waiting:
            if (
                now
                or w.rows >= limits.rows
                or w.idle_seconds >= limits.idle_seconds
                or w.age_seconds >= limits.age_seconds
            ):
                async with self._store.transaction() as records:
                    await records.cut_segment(w.model, limits.rows)

    async def _write(self, segment: Segment) -> None:
        async with self._store.reading() as records:
            batches = await records.segment_batches(segment.id)
        files, rows, last = await asyncio.to_thread(_files, batches)
        objects = []
        for (version, part, day), body in files.items():
            date = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).date().isoformat()
            file = f"segment-{segment.id:012d}-v{VersionName.parse(version).version}.parquet"
            folder = self._folder(segment.model)
            if part:
                # Readers of the archive unify the types of its files, so a conflict would stop them.
                log.error("archive dead letter", model=segment.model, segment=segment.id, reason=CONFLICT)
                folder, file = self._folder(segment.model, DEAD_LETTER), f"{part}-{file}"
            key = f"{folder}/date={date}/{file}"
            await self._objects.put(key, body)
            objects.append(key)
        async with self._store.transaction() as records:
            await records.complete_segment(segment.id, objects, rows, last)
        log.info("segment archived", model=segment.model, segment=segment.id, rows=rows, objects=len(objects))

    def _folder(self, model: str, suffix: str = "") -> str:
        name = ModelName.parse(model)
        return f"{self._settings.prefix}{suffix}/{name.project}/{name.model}"


def _files(batches: list[tuple[bytes, bytes]]) -> tuple[dict[tuple[str, int, int], bytes], int, int]:
    """((version, part, day) → Parquet bytes, rows, newest event time). Part 0 is the archive; the others are
    rows whose column types conflict with it."""
    tables: dict[str, list[pa.Table]] = {}
    for payload, kept in batches:
        rows = len(prediction_pb2.PredictionBatch.FromString(payload).prediction_ids)
        version, table = batch_table(payload, unpack_kept(kept, rows))
        tables.setdefault(version, []).append(table)
    files, count, last = {}, 0, 0
    for version, parts in sorted(tables.items()):
        for part, whole in enumerate(joined(parts)):
            for day, table in by_day(whole).items():
                files[(version, part, day)] = to_parquet(table)
                count += table.num_rows
                last = max(last, int(table["event_time"].cast(pa.int64()).to_numpy().max()))
    return files, count, last
