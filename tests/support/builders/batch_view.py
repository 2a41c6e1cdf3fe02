"""A batch view in memory with a clock that tests set: its table, pushes, materializations and reads."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from flywheel_common.clock import ManualClock
from flywheel_common.event_time import EventTimeBound
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import (
    BatchView,
    DataType,
    Entity,
    Feature,
    Field,
    ParquetSource,
    Source,
    View,
)
from flywheel_feature.encoding.event_payloads import encode_event
from flywheel_feature.encoding.keys import entity_keys
from flywheel_feature.fakes.archive import MemoryArchive
from flywheel_feature.fakes.online import MemoryOnlineStore
from flywheel_feature.fakes.streams import Garbage, MemoryMaterialized, MemoryPushLog
from flywheel_feature.fakes.tables import MemoryTables
from flywheel_feature.fakes.topics import MemoryTopics
from flywheel_feature.ingest.due_rows import DueRows
from flywheel_feature.ingest.materialize_checkpoint import MaterializeCheckpoint
from flywheel_feature.ingest.materialize_job import MaterializeJob, MaterializeRequest
from flywheel_feature.ingest.push import Pusher
from flywheel_feature.ingest.push_log import PushLog
from flywheel_feature.ingest.rule_actions import RuleActions
from flywheel_feature.ingest.tombstones import Tombstone, TombstoneFilter, key_hash
from flywheel_feature.jobs.model import Job
from flywheel_feature.offline.joins.stored_join import StoredView
from flywheel_feature.offline.model import JoinMode
from flywheel_feature.online.read_plan import plan_of_features
from flywheel_feature.tables.sources import SourceReader
from tests.support.builders.feature_units import EPOCH, UTC_MICROSECONDS, at, microseconds
from tests.support.builders.jobs import RecordingJob

URI = "s3://memory/facts/"
Row = tuple[str, int, int | None, float]
"""Key, minute of the event time, minute of the created time, value."""


class BatchViewLab:
    """The view `facts` (key `k`, feature `v`). Times are minutes after EPOCH; the clock starts at one."""

    def __init__(self, *, created: bool = False, ttl_minutes: int = 0, minute: int = 0) -> None:
        fields = [Field("k", DataType.STRING), Field("at", DataType.TIMESTAMP), Field("v", DataType.FLOAT64)]
        if created:
            fields.append(Field("made", DataType.TIMESTAMP))
        self.source = Source("p", "facts", tuple(fields), "at", "made" * created, ParquetSource(URI))
        features = (Feature("v", DataType.FLOAT64, field="v"),)
        ttl = ttl_minutes * 60_000_000
        kind = BatchView("facts", features)
        self.view = View("p", "facts", "e", kind, ttl=ttl, version=1, features=features)
        self.entity = Entity("p", "e", (Field("k", DataType.STRING),))
        self.catalog = Catalog(
            "p",
            1,
            {"e": self.entity},
            {"facts": self.source},
            {self.view.ref: self.view},
            {},
            {"facts": self.view},
        )
        self.clock = ManualClock(EPOCH)
        self.clock.advance(minute * 60.0)
        self.tables, self.online, self.seen = MemoryTables(), MemoryOnlineStore(), MemoryMaterialized()
        self.erased: dict[bytes, Tombstone] = {}
        self._files = 0
        self.log = PushLog(MemoryPushLog(Garbage()), self.tables, self._new_id)
        self.pusher = Pusher(
            MemoryTopics(1),
            self.online,
            self.log,
            self.seen,
            encode_event,
            RuleActions(self.tables),
            seen=self.seen,
            event_times=EventTimeBound(self.clock),
        )
        self.submitted: list[tuple[str, MaterializeRequest]] = []
        """Request ids and requests of the jobs that were submitted for rows that became valid."""
        self.due_rows = DueRows(self.seen, self._submit, lambda: [self.catalog], self.clock)

    async def _catalog(self, project: str) -> Catalog:
        return self.catalog

    def _new_id(self) -> str:
        self._files += 1
        return f"{self._files:04}"

    async def _submit(self, kind: str, request: bytes, request_id: str, *, project: str) -> Job:
        if request_id not in dict(self.submitted):
            self.submitted.append((request_id, MaterializeRequest.load(request)))
        return Job(project, request_id, kind, request, self.clock.now())

    def erase(self, key: str) -> None:
        """Erase an entity at the time of the clock."""
        (name,) = entity_keys([(DataType.STRING, [key])])
        now = round(self.clock.now().timestamp() * 1e6)
        self.erased[key_hash(self.entity, name)] = Tombstone(now, {})

    def frame(self, rows: Sequence[Row]) -> pl.DataFrame:
        columns: dict[str, Any] = {
            "k": pl.Series([r[0] for r in rows], dtype=pl.String),
            "at": pl.Series([at(r[1]) for r in rows], dtype=UTC_MICROSECONDS),
            "v": pl.Series([r[3] for r in rows], dtype=pl.Float64),
        }
        if self.source.created_field:
            columns["made"] = pl.Series([at(r[2]) for r in rows], dtype=UTC_MICROSECONDS)
        return pl.DataFrame(columns)

    def write(self, file: str, *rows: Row) -> None:
        self.tables.write(f"{URI}{file}.parquet", self.frame(rows))

    async def push(self, *rows: Row, offline: bool = True, online: bool = True) -> None:
        valid = np.ones(len(rows), np.bool_)
        keys = np.empty(len(rows), object)
        keys[:] = [r[0] for r in rows]
        columns = {
            "k": (keys, valid),
            "at": (microseconds([r[1] for r in rows]), valid),
            "v": (np.array([r[3] for r in rows]), valid),
        }
        if self.source.created_field:
            given = np.array([r[2] is not None for r in rows], np.bool_)
            columns["made"] = microseconds([r[2] or 0 for r in rows]), given
        await self.pusher.to_view(
            self.catalog, self.view, self.source, columns, len(rows), offline=offline, online=online
        )

    def job(self) -> MaterializeJob:
        return MaterializeJob(
            catalogs=self._catalog,
            files=self.tables,
            seen=self.seen,
            pushed=self.log,
            online=self.online,
            materialized=self.seen,
            tombstones=TombstoneFilter(lambda project: self.catalog, lambda project: {"e": self.erased}),
            rule_actions=RuleActions(self.tables),
            clock=self.clock,
        )

    async def materialize(
        self,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        due_only: bool = False,
        job: RecordingJob | None = None,
    ) -> MaterializeCheckpoint:
        low, high = (None if t is None else round(t.timestamp()) * 1_000_000 for t in (start, end))
        request = MaterializeRequest("p", "facts", low, high, due_only=due_only)
        job = job or RecordingJob()
        checkpoint = MaterializeCheckpoint.load(job.checkpoint)
        await self.job().materialize(request, checkpoint, job)
        return checkpoint

    async def pick_up(self) -> int:
        """Submit the jobs that are due and carry them out; returns how many rows they read."""
        before = len(self.submitted)
        await self.due_rows.submit()
        read = 0
        for _, request in self.submitted[before:]:
            checkpoint = MaterializeCheckpoint()
            await self.job().materialize(request, checkpoint, RecordingJob())
            read += checkpoint.read
        return read

    async def read(self, keys: Sequence[str], minute: int | None = None) -> list[tuple[int, float | None]]:
        """(status, value) per key; `minute`: as_of, None: a read of now."""
        plan = plan_of_features(self.catalog, ["facts:*"])
        blobs = await self.online.read(plan.redis_keys([entity_keys([(DataType.STRING, list(keys))])]))
        now = round(self.clock.now().timestamp() * 1e6)
        as_of = np.full(len(keys), now) if minute is None else microseconds([minute] * len(keys))
        answer = plan.decode(blobs, as_of, {}, None if minute is None else as_of)
        values, valid = answer.columns[0]
        found = [float(v) if ok else None for v, ok in zip(values, valid, strict=True)]
        return list(zip(answer.statuses[0].tolist(), found, strict=True))

    async def offline(self, keys: Sequence[str], minutes: Sequence[int]) -> list[float | None]:
        """The values of a point-in-time join, per key and minute."""
        stored = StoredView(self.view, self.entity, self.source, ("v",))
        archive = MemoryArchive()
        for uri in await self.log.pushed_uris("p", "facts"):
            archive.push("p", "facts", uri)
        rows = await SourceReader(self.tables, archive).read(
            self.source, stored.fields, pushed_to=stored.pushed_to
        )
        spine = pl.DataFrame(
            {"k": list(keys), "t": [at(m) for m in minutes]},
            schema={"k": pl.String, "t": UTC_MICROSECONDS},
        )
        joined = stored.join(spine, "t", JoinMode.POINT_IN_TIME, rows)
        return list(joined.get_column("v").to_list())
