"""The archive of the prediction log in S3: each row once, whatever crashes when.

Batches wait in the store, put there by the transaction that counted them. A segment names its batches first, then its
objects are written under names made of its id, then it is completed and the batches go. A crash repeats the same bytes
under the same names, so no object holds a row that another holds too. Readers may list the prefix.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from flywheel_common.errors import FlywheelError
from flywheel_common.storage.objects import ObjectStore
from flywheel_common.telemetry.logs import get_logger
from flywheel_monitor.archive_format import batch_table, by_day, to_parquet
from flywheel_monitor.batches import Segment, unpack_kept
from flywheel_monitor.gauges import Gauges
from flywheel_monitor.ports import Store
from flywheel_monitor.resource_names import ModelName, VersionName
from flywheel_protos.events.v1 import prediction_pb2

log = get_logger(__name__)


@dataclass(frozen=True)
class ArchiveSettings:
    """`prefix` ends without a slash. A segment is cut after `rows`, after `idle_seconds` without a new batch, or when its
    oldest batch is `age_seconds` old."""

    bucket: str
    prefix: str = "predictions"
    rows: int = 50_000
    idle_seconds: float = 1.0
    age_seconds: float = 30.0
    poll_seconds: float = 0.5


class Archive:
    """`run` under a lease; `status` anywhere."""

    def __init__(self, store: Store, objects: ObjectStore, settings: ArchiveSettings, gauges: Gauges) -> None:
        self._store = store
        self._objects = objects
        self._settings = settings
        self._gauges = gauges

    def uri(self, model: str) -> str:
        """Where a model's log is: `s3://bucket/predictions/<project>/<model>/`."""
        return f"s3://{self._settings.bucket}/{self._folder(model)}/"

    async def status(self, model: str) -> tuple[int, int | None]:
        """(rows in completed segments, newest event time among them in microseconds)."""
        async with self._store.reading() as records:
            return await records.archived(model)

    async def run(self) -> None:
        """Waits out outages of S3 and of the store."""
        while True:
            try:
                await self.pass_once()
            except FlywheelError as error:
                if not error.retryable:
                    raise
                log.warning("archive waits", reason=error.reason)
                await asyncio.sleep(2.0)
            await asyncio.sleep(self._settings.poll_seconds)

    async def pass_once(self, *, now: bool = False) -> int:
        """Finishes what is pending and cuts what is due (`now`: all there is); returns how many segments were completed."""
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
        self._gauges.archive_waiting(sum(w.rows for w in waiting))
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
        for (version, day), body in files.items():
            date = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).date().isoformat()
            file = f"segment-{segment.id:012d}-v{VersionName.parse(version).version}.parquet"
            key = f"{self._folder(segment.model)}/date={date}/{file}"
            await self._objects.put(key, body)
            objects.append(key)
        async with self._store.transaction() as records:
            await records.complete_segment(segment.id, objects, rows, last)
        log.info("segment archived", model=segment.model, segment=segment.id, rows=rows, objects=len(objects))

    def _folder(self, model: str) -> str:
        name = ModelName.parse(model)
        return f"{self._settings.prefix}/{name.project}/{name.model}"


def _files(batches: list[tuple[bytes, bytes]]) -> tuple[dict[tuple[str, int], bytes], int, int]:
    """((version, day) → Parquet bytes, rows, newest event time)."""
    tables: dict[str, list[pa.Table]] = {}
    for payload, kept in batches:
        rows = len(prediction_pb2.PredictionBatch.FromString(payload).prediction_ids)
        version, table = batch_table(payload, unpack_kept(kept, rows))
        tables.setdefault(version, []).append(table)
    files, count, last = {}, 0, 0
    for version, parts in sorted(tables.items()):
        for day, table in by_day(parts).items():
            files[(version, day)] = to_parquet(table)
            count += table.num_rows
            last = max(last, int(table["event_time"].cast(pa.int64()).to_numpy().max()))
    return files, count, last
