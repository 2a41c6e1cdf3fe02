"""ERASE jobs: everything that the platform holds about one entity goes, and a report says what it does not hold.

First the tombstone (erased.py), then a moment in which every process learns of it: from then on nothing brings the entity back
while the job takes it out of each place. Each step may be repeated; a second job finds nothing. The job forgets the key itself
when it is done.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import polars as pl

from flywheel_common.clock import Clock
from flywheel_common.errors import NotFound
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import BatchView, Entity, ParquetSource, Source, StreamView, View
from flywheel_feature.encoding.keys import key_prefix
from flywheel_feature.erasure.ports import (
    EventArchive,
    Objects,
    OnlineKeys,
    PushArchive,
    TombstoneStore,
    TopicEnds,
    TrainingSetList,
)
from flywheel_feature.ingest.archive import EVENT_TIME, OFFSET
from flywheel_feature.ingest.tombstones import Tombstone, key_columns, key_hash, names_entity, rows_of
from flywheel_feature.jobs.runner import JobContext

KIND = "ERASE"
LEARN_SECONDS = 2.5
"""After so long every process has read the tombstones again."""
ORPHAN_SECONDS = 3600.0
"""A file below the archive that PostgreSQL has not known for so long was left by a process that died."""


@dataclass(frozen=True, slots=True)
class EraseRequest:
    project: str
    entity: str
    """Entity id."""
    name: bytes
    """What keys.entity_keys gives for it."""

    def dump(self) -> bytes:
        name = base64.b64encode(self.name).decode()
        return json.dumps({"project": self.project, "entity": self.entity, "name": name}).encode()

    @classmethod
    def load(cls, data: bytes) -> EraseRequest:
        read = json.loads(data)
        return cls(read["project"], read["entity"], base64.b64decode(read["name"]))


@dataclass(slots=True)
class EraseReport:
    entity: str = ""
    online_keys: int = 0
    archived_events: int = 0
    pushed_rows: int = 0
    predictions: int = 0
    quarantined_rows: int = 0
    objects: int = 0
    not_erased: list[str] = field(default_factory=list)


class EraseJob:
    """`delete` removes an object by its key. `predictions`: key prefix of the prediction log in the bucket, without a slash at
    the end."""

    def __init__(
        self,
        catalogs: Callable[[str], Awaitable[Catalog]],
        online: OnlineKeys,
        archive: EventArchive,
        pushes: PushArchive,
        objects: Objects,
        stones: TombstoneStore,
        topics: TopicEnds,
        training_sets: TrainingSetList,
        clock: Clock,
        new_id: Callable[[], str],
        delete: Callable[[str], Awaitable[None]],
        *,
        predictions: str,
    ) -> None:
        self._catalogs = catalogs
        self._online = online
        self._archive = archive
        self._pushes = pushes
        self._objects = objects
        self._stones = stones
        self._topics = topics
        self._training_sets = training_sets
        self._clock = clock
        self._new_id = new_id
        self._delete = delete
        self._predictions = predictions

    async def run(self, job: JobContext) -> Mapping[str, object]:
        """The job's handler: the report."""
        state: dict[str, Any] = json.loads(job.checkpoint) if job.checkpoint else {}
        report = EraseReport(**state.get("report", {}))
        if not job.request:
            return asdict(report)
        request = EraseRequest.load(job.request)
        catalog = await self._catalogs(request.project)
        entity = catalog.entity(request.entity)
        report.entity = entity.name
        about = _About(entity, request.name)
        sources = [s for s in catalog.sources.values() if names_entity(s, entity)]
        streams = [s for s in sources if s.is_stream]
        if "barriers" not in state:
            job.progress(0, 5, "steps", "telling every process")
            barriers = {s.id: dict(await self._topics.end_offsets(s.project, s.id)) for s in streams}
            stone = Tombstone(int(self._clock.now().timestamp() * 1e6), barriers)
            await self._stones.put(request.project, request.entity, key_hash(entity, request.name), stone)
            await self._clock.sleep(LEARN_SECONDS)
            state["barriers"] = {s: {str(p): o for p, o in b.items()} for s, b in barriers.items()}
        steps: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("online", lambda: self._erase_online(catalog, about, report)),
            ("events", lambda: self._erase_events(streams, state["barriers"], about, report)),
            ("pushes", lambda: self._erase_pushes(catalog, about, report)),
            ("quarantine", lambda: self._erase_quarantine(catalog, sources, about, report)),
            ("predictions", lambda: self._erase_predictions(request.project, about, report)),
            ("garbage", lambda: self._clear_away(streams, report)),
        ]
        for number, (step, work) in enumerate(steps):
            if step not in state.setdefault("done", []):
                job.check_cancelled()
                job.progress(number, len(steps), "steps", f"erasing: {step}")
                await work()
                state["done"].append(step)
                await self._save(job, state, report)
        report.not_erased = [s async for s in self._kept(catalog, sources, about)]
        await self._save(job, state, report)
        await job.forget_request()
        job.progress(len(steps), len(steps), "steps", "erased")
        return asdict(report)

    async def _save(self, job: JobContext, state: dict[str, Any], report: EraseReport) -> None:
        state["report"] = asdict(report)
        await job.save_checkpoint(json.dumps(state).encode())

    async def _erase_online(self, catalog: Catalog, about: _About, report: EraseReport) -> None:
        keys = [key_prefix(v) + about.name for v in _views_of(catalog, about.entity)]
        report.online_keys += await self._online.delete(keys)

    async def _erase_events(
        self,
        streams: Sequence[Source],
        barriers: Mapping[str, Mapping[str, int]],
        about: _About,
        report: EraseReport,
    ) -> None:
        for source in streams:
            for segment in await self._archive.segments(source.project, source.id):
                barrier = barriers.get(source.id, {}).get(str(segment.partition), segment.next_offset)
                if segment.first_offset >= barrier:
                    continue
                kept = await asyncio.to_thread(self._without, segment.uri, about, OFFSET, barrier)
                if kept is None:
                    continue
                frame, removed = kept
                new = await self._written(_key(segment.uri), frame)
                times = frame.get_column(EVENT_TIME).dt.epoch("us")
                low, high = times.min(), times.max()
                await self._archive.replace_segment(
                    _key(segment.uri), new, frame.height, low if isinstance(low, int) else 0, high if isinstance(high, int) else 0
                )  # fmt: skip
                report.archived_events += removed
                report.objects += 1

    async def _erase_pushes(self, catalog: Catalog, about: _About, report: EraseReport) -> None:
        views = {
            v.id: v.project
            for v in catalog.views.values()
            if isinstance(v.kind, BatchView)
            and v.kind.source in catalog.sources
            and names_entity(catalog.source(v.kind.source), about.entity)
        }
        for view, project in sorted(views.items()):
            for _, key in await self._pushes.keys(project, view):
                kept = await asyncio.to_thread(self._without, self._objects.bucket_uri(key), about)
                if kept is None:
                    continue
                frame, removed = kept
                await self._pushes.replace(key, await self._written(key, frame), frame.height)
                report.pushed_rows += removed
                report.objects += 1

    async def _erase_predictions(self, project: str, about: _About, report: EraseReport) -> None:
        """Rows go as a whole: the features as served say as much about a person as the key does."""
        folder = f"{self._predictions}/{project}/"
        report.predictions += await self._erase_in_place(folder, about, report, prefix="entity__")

    async def _erase_quarantine(
        self, catalog: Catalog, sources: Sequence[Source], about: _About, report: EraseReport
    ) -> None:
        """What validating.Validating set aside of the sources that speak of the entity and of the views on them."""
        ids = {s.id for s in sources}
        views = {
            v.id for v in catalog.views.values() if isinstance(v.kind, BatchView) and v.kind.source in ids
        }
        for name in sorted(views | {f"source.{s}" for s in ids}):
            folder = f"quarantine/{catalog.project}/{name}/"
            report.quarantined_rows += await self._erase_in_place(folder, about, report)

    async def _erase_in_place(
        self, folder: str, about: _About, report: EraseReport, *, prefix: str = ""
    ) -> int:
        """Rows removed from the files below a key prefix, each under the name that it had."""
        try:
            files = await asyncio.to_thread(self._objects.files, self._objects.bucket_uri(folder))
        except NotFound:
            return 0
        total = 0
        for file in files:
            kept = await asyncio.to_thread(self._without, file.uri, about, prefix=prefix)
            if kept is None:
                continue
            frame, removed = kept
            if frame.height:
                await asyncio.to_thread(self._objects.write, file.uri, frame)
            else:
                await self._delete(_key(file.uri))
            total += removed
            report.objects += 1
        return total

    async def _clear_away(self, streams: Sequence[Source], report: EraseReport) -> None:
        """Objects that were replaced, and those that a process left unregistered when it died."""
        for source in streams:
            folder = self._objects.bucket_uri(f"sources/{source.project}/{source.id}/")
            old = await asyncio.to_thread(self._objects.older_than, folder, ORPHAN_SECONDS)
            known = {s.uri for s in await self._archive.segments(source.project, source.id)}
            orphans = [_key(uri) for uri in old if uri not in known]
            await self._stones.add_garbage(orphans)
            report.objects += len(orphans)
        for key in await self._stones.garbage():
            await self._delete(key)
            await self._stones.deleted(key)

    def _without(
        self, uri: str, about: _About, offset: str = "", barrier: int = 0, *, prefix: str = ""
    ) -> tuple[pl.DataFrame, int] | None:
        """The file without the entity's rows and how many those are; None when it has none."""
        stored = self._objects.schema(uri)
        names = [prefix + k.name for k in about.entity.join_keys]
        if not set(names) <= set(stored):
            return None
        keys = self._objects.read(uri, [*names, *([offset] if offset else [])])
        mine = about.rows(keys.rename({prefix + k.name: k.name for k in about.entity.join_keys}))
        if offset:
            place = keys.get_column(offset)
            mine = [row for row in mine if place[row] < barrier]
        if not mine:
            return None
        frame = self._objects.read(uri, list(stored))
        drop = pl.Series(mine, dtype=pl.UInt32)
        return frame.filter(~pl.int_range(pl.len(), dtype=pl.UInt32).is_in(drop.implode())), len(mine)

    async def _written(self, old: str, frame: pl.DataFrame) -> str:
        """The key of a new object beside an old one; empty for no rows."""
        if not frame.height:
            return ""
        key = f"{old.rpartition('/')[0]}/{self._new_id()}.parquet"
        await asyncio.to_thread(self._objects.write, self._objects.bucket_uri(key), frame)
        return key

    async def _kept(self, catalog: Catalog, sources: Sequence[Source], about: _About) -> Any:
        for source in sources:
            if isinstance(source.kind, ParquetSource):
                yield (
                    f"{source.kind.uri}: the table of {source.name} is its owner's; remove the entity's rows there. Rows known before "
                    "this erasure are not materialized again, but training sets read what the table holds."
                )
            elif source.is_stream:
                yield (
                    f"{source.name}: its Kafka topic keeps the records until their retention ends; they are passed over when read again."
                )
        own = {v.id for v in _views_of(catalog, about.entity)}
        others = {
            v.base_name
            for v in catalog.live_views()
            if isinstance(v.kind, StreamView)
            and v.id not in own
            and any(s.id == v.kind.source for s in sources)
        }
        for name in sorted(others):
            yield f"{name}: its aggregates over other entities keep what the events added until RebuildOnlineStore."
        for found in await self._training_sets.list(catalog.project, limit=100_000):
            rows = await asyncio.to_thread(self._rows_in, found.uri, about)
            if rows:
                yield f"{found.name}: {rows} rows of a training set, which is immutable; build it again and delete {found.uri}."
        yield (
            "prediction.logged and outcome.recorded: Kafka and the monitor's queue may hold predictions that are not archived yet; "
            "erase once more when their retention is over. The monitor's counts name no entity."
        )

    def _rows_in(self, uri: str, about: _About) -> int:
        try:
            names = [k.name for k in about.entity.join_keys]
            if not set(names) <= set(self._objects.schema(uri)):
                return 0
            return len(about.rows(self._objects.read(uri, names)))
        except NotFound:
            return 0


class _About:
    """One entity and its rows in a frame that has its join keys."""

    def __init__(self, entity: Entity, name: bytes) -> None:
        self.entity = entity
        self.name = name

    def rows(self, frame: pl.DataFrame) -> list[int]:
        found = rows_of(
            self.entity, key_columns(self.entity, frame), lambda n: True if n == self.name else None
        )
        return [row for row, _ in found]


def _views_of(catalog: Catalog, entity: Entity) -> Iterator[View]:
    """Every version of every view, also of deleted ones."""
    for view in catalog.views.values():
        if view.entity == entity.id and isinstance(view.kind, (BatchView, StreamView)):
            yield view


def _key(uri: str) -> str:
    return uri.removeprefix("s3://").partition("/")[2]
