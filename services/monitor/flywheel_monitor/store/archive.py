"""The archive of the prediction log in S3: each row once, whatever crashes when.

Batches wait in PostgreSQL, put there by the transaction that counted them. A segment names its batches first, then its
objects are written under names made of its id, then it is completed and the batches go. A crash repeats the same bytes
under the same names, so no object holds a row that another holds too. Readers may list the prefix.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from flywheel_common.errors import FlywheelError
from flywheel_common.logs import get_logger
from flywheel_common.objects import ObjectStore
from flywheel_common.postgres import Pool, connection, transaction
from flywheel_monitor.archive_format import batch_table, by_day, to_parquet
from flywheel_monitor.batches import unpack_kept
from flywheel_monitor.gauges import Gauges
from flywheel_monitor.resource_names import ModelName, VersionName
from flywheel_protos.events.v1 import prediction_pb2

log = get_logger(__name__)

_WAITING = """
SELECT q.model_id, sum(q.rows) AS rows, extract(epoch FROM clock_timestamp() - max(q.enqueued_at)) AS idle,
    extract(epoch FROM clock_timestamp() - min(q.enqueued_at)) AS age
FROM archive_queue q WHERE q.segment_id IS NULL GROUP BY q.model_id
"""
_CANDIDATES = (
    "SELECT id, rows FROM archive_queue WHERE segment_id IS NULL AND model_id = $1 ORDER BY id LIMIT 20000"
)
_ADD_SEGMENT = "INSERT INTO archive_segment (model_id, rows) VALUES ($1, $2) RETURNING id"
_ASSIGN = "UPDATE archive_queue SET segment_id = $1 WHERE id = ANY($2::bigint[]) AND segment_id IS NULL"
_PENDING = "SELECT s.id, m.name FROM archive_segment s JOIN model m ON m.id = s.model_id WHERE NOT s.complete ORDER BY s.id"
_BATCHES = "SELECT kept, payload FROM archive_queue WHERE segment_id = $1 ORDER BY id"
_COMPLETE = (
    "UPDATE archive_segment SET complete = true, objects = $2, last_event = $3, rows = $4 WHERE id = $1"
)
_FORGET = "DELETE FROM archive_queue WHERE segment_id = $1"
_STATUS = """
SELECT coalesce(sum(s.rows), 0) AS rows, max(s.last_event) AS last_event
FROM archive_segment s JOIN model m ON m.id = s.model_id WHERE m.name = $1 AND s.complete
"""


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

    def __init__(self, pool: Pool, objects: ObjectStore, settings: ArchiveSettings, gauges: Gauges) -> None:
        self._pool = pool
        self._objects = objects
        self._settings = settings
        self._gauges = gauges

    def uri(self, model: str) -> str:
        """Where a model's log is: `s3://bucket/predictions/<project>/<model>/`."""
        return f"s3://{self._settings.bucket}/{self._folder(model)}/"

    async def status(self, model: str) -> tuple[int, int | None]:
        """(rows in completed segments, newest event time among them in microseconds)."""
        async with connection(self._pool) as conn:
            row = await conn.fetchrow(_STATUS, model)
        return int(row["rows"]), row["last_event"]

    async def run(self) -> None:
        """Waits out outages of S3 and PostgreSQL."""
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
        async with connection(self._pool) as conn:
            pending = await conn.fetch(_PENDING)
        for row in pending:
            await self._write(row["id"], row["name"])
        return len(pending)

    async def _cut(self, now: bool) -> None:
        limits = self._settings
        async with connection(self._pool) as conn:
            waiting = await conn.fetch(_WAITING)
        self._gauges.archive_waiting(sum(int(w["rows"]) for w in waiting))
        for w in waiting:
            if (
                now
                or w["rows"] >= limits.rows
                or w["idle"] >= limits.idle_seconds
                or w["age"] >= limits.age_seconds
            ):
                async with transaction(self._pool) as conn:
                    ids, rows = [], 0
                    for candidate in await conn.fetch(_CANDIDATES, w["model_id"]):
                        if rows >= limits.rows:
                            break
                        ids.append(candidate["id"])
                        rows += candidate["rows"]
                    segment = await conn.fetchval(_ADD_SEGMENT, w["model_id"], rows)
                    await conn.execute(_ASSIGN, segment, ids)

    async def _write(self, segment: int, model: str) -> None:
        async with connection(self._pool) as conn:
            batches = [(r["payload"], r["kept"]) for r in await conn.fetch(_BATCHES, segment)]
        files, rows, last = await asyncio.to_thread(_files, batches)
        objects = []
        for (version, day), body in files.items():
            date = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).date().isoformat()
            key = f"{self._folder(model)}/date={date}/segment-{segment:012d}-v{VersionName.parse(version).version}.parquet"
            await self._objects.put(key, body)
            objects.append(key)
        async with transaction(self._pool) as conn:
            await conn.execute(_COMPLETE, segment, json.dumps(sorted(objects)), last, rows)
            await conn.execute(_FORGET, segment)
        log.info("segment archived", model=model, segment=segment, rows=rows, objects=len(objects))

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
