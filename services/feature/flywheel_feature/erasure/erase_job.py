"""ERASE jobs: delete everything that the platform stores about one entity, and report what cannot be deleted.

The job first stores a tombstone (ingest/tombstones.py) and waits until every process has read it: from then
on no process writes the entity again. Then it removes the entity from each store, step by step. Every step
may be repeated, and a second job finds nothing. In the end the job deletes the key from its own request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from flywheel_common.clock import Clock
from flywheel_common.value import micros
from flywheel_feature.definitions.catalog import Catalog, CatalogReader
from flywheel_feature.definitions.model import BatchView, Entity, ParquetSource, Source, StreamView, View
from flywheel_feature.encoding.keys import key_prefix
from flywheel_feature.erasure.file_erasure import FileErasure, object_key
from flywheel_feature.erasure.model import ErasedEntity, EraseReport, EraseRequest
from flywheel_feature.erasure.ports import Objects, OnlineKeys, TombstoneStore
from flywheel_feature.ingest.archive import EVENT_TIME, OFFSET, EventArchive
from flywheel_feature.ingest.freshness import TopicEnds
from flywheel_feature.ingest.push_log import PushedSegments
from flywheel_feature.ingest.tombstones import Tombstone, key_hash, names_entity
from flywheel_feature.jobs.runner import JobContext
from flywheel_feature.offline.ports import TrainingSets

KIND = "ERASE"
PROPAGATION_SECONDS = 2.5
"""After this time every process has read the tombstones again."""
ORPHAN_SECONDS = 3600.0
"""A file of the archive that PostgreSQL does not list at this age was left by a process that died."""


class EraseJob:
    """Erases entities.

    `delete` removes an object by its key; `predictions` is the key prefix of the prediction log, without a
    slash.
    """

    def __init__(
        self,
        *,
        catalogs: CatalogReader,
        online: OnlineKeys,
        archive: EventArchive,
        pushes: PushedSegments,
        objects: Objects,
        tombstones: TombstoneStore,
        topics: TopicEnds,
        training_sets: TrainingSets,
        clock: Clock,
        new_id: Callable[[], str],
        delete: Callable[[str], Awaitable[None]],
        predictions: str,
    ) -> None:
        self._catalogs = catalogs
        self._online = online
        self._archive = archive
        self._pushes = pushes
        self._objects = objects
        self._files = FileErasure(objects, new_id, delete)
        self._tombstones = tombstones
        self._topics = topics
        self._training_sets = training_sets
        self._clock = clock
        self._delete = delete
        self._predictions = predictions

    async def run(self, job: JobContext) -> Mapping[str, object]:
        """The handler of the job: the report."""
        state: dict[str, Any] = json.loads(job.checkpoint) if job.checkpoint else {}
        report = EraseReport(**state.get("report", {}))
        if not job.request:
            # An earlier start finished and deleted the request.
            return asdict(report)
        request = EraseRequest.load(job.request)
        catalog = await self._catalogs(request.project)
        entity = catalog.entity(request.entity)
        report.entity = entity.name
        erased = ErasedEntity(entity, request.name)
        sources = [s for s in catalog.sources.values() if names_entity(s, entity)]
        streams = [s for s in sources if s.is_stream]
        steps: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("online", lambda: self._erase_online(catalog, erased, report)),
            ("events", lambda: self._erase_events(streams, state["barriers"], erased, report)),
            ("pushes", lambda: self._erase_pushes(catalog, erased, report)),
            ("quarantine", lambda: self._erase_quarantine(catalog, sources, erased, report)),
            ("predictions", lambda: self._erase_predictions(request.project, erased, report)),
            ("garbage", lambda: self._delete_garbage(streams, report)),
        ]
        if "barriers" not in state:
            job.progress(0, len(steps), "steps", "publishing the tombstone")
            state["barriers"] = await self._put_tombstone(request, entity, streams)
        for number, (step, work) in enumerate(steps):
            if step not in state.setdefault("done", []):
                job.check_cancelled()
                job.progress(number, len(steps), "steps", f"erasing: {step}")
                await work()
                state["done"].append(step)
                await self._save(job, state, report)
        report.not_erased = [message async for message in self._not_erased(catalog, sources, erased)]
        await self._save(job, state, report)
        await job.forget_request()
        job.progress(len(steps), len(steps), "steps", "erased")
        return asdict(report)

    async def _save(self, job: JobContext, state: dict[str, Any], report: EraseReport) -> None:
        state["report"] = asdict(report)
        await job.save_checkpoint(json.dumps(state).encode())

    async def _put_tombstone(
        self, request: EraseRequest, entity: Entity, streams: Sequence[Source]
    ) -> dict[str, dict[str, int]]:
        """Store the tombstone, wait until every process has it; returns its barriers as JSON."""
        barriers = {s.id: dict(await self._topics.end_offsets(s.project, s.id)) for s in streams}
        tombstone = Tombstone(micros(self._clock.now()), barriers)
        hashed = key_hash(entity, request.name)
        await self._tombstones.put(request.project, request.entity, hashed, tombstone)
        await self._clock.sleep(PROPAGATION_SECONDS)
        return {s: {str(p): o for p, o in b.items()} for s, b in barriers.items()}

    async def _erase_online(self, catalog: Catalog, erased: ErasedEntity, report: EraseReport) -> None:
        keys = [key_prefix(v) + erased.name for v in _stored_views(catalog, erased.entity)]
        report.online_keys += await self._online.delete(keys)

    async def _erase_events(
        self,
        streams: Sequence[Source],
        barriers: Mapping[str, Mapping[str, int]],
        erased: ErasedEntity,
        report: EraseReport,
    ) -> None:
        for source in streams:
            for segment in await self._archive.segments(source.project, source.id):
                barrier = barriers.get(source.id, {}).get(str(segment.partition), segment.next_offset)
                if segment.first_offset >= barrier:
                    continue
                kept = await self._files.without(segment.uri, erased, OFFSET, barrier)
                if kept is None:
                    continue
                frame, removed = kept
                old = object_key(segment.uri)
                new = await self._files.write_beside(old, frame)
                times = frame.get_column(EVENT_TIME).dt.epoch("us")
                low, high = times.min(), times.max()
                min_time = low if isinstance(low, int) else 0
                max_time = high if isinstance(high, int) else 0
                await self._archive.replace_segment(old, new, frame.height, min_time, max_time)
                report.archived_events += removed
                report.objects += 1

    async def _erase_pushes(self, catalog: Catalog, erased: ErasedEntity, report: EraseReport) -> None:
        views = {
            v.id: v.project
            for v in catalog.views.values()
            if isinstance(v.kind, BatchView)
            and v.kind.source in catalog.sources
            and names_entity(catalog.source(v.kind.source), erased.entity)
        }
        for view, project in sorted(views.items()):
            for _, key in await self._pushes.keys(project, view):
                kept = await self._files.without(self._objects.bucket_uri(key), erased)
                if kept is None:
                    continue
                frame, removed = kept
                await self._pushes.replace(key, await self._files.write_beside(key, frame), frame.height)
                report.pushed_rows += removed
                report.objects += 1

    async def _erase_predictions(self, project: str, erased: ErasedEntity, report: EraseReport) -> None:
        """Remove whole rows: the served features identify a person as much as the key does."""
        folder = f"{self._predictions}/{project}/"
        report.predictions += await self._files.erase_in_place(folder, erased, report, prefix="entity__")

    async def _erase_quarantine(
        self, catalog: Catalog, sources: Sequence[Source], erased: ErasedEntity, report: EraseReport
    ) -> None:
        """Erase in the quarantine files of the sources that name the entity, and of the views on them."""
        ids = {s.id for s in sources}
        views = {
            v.id for v in catalog.views.values() if isinstance(v.kind, BatchView) and v.kind.source in ids
        }
        for name in sorted(views | {f"source.{s}" for s in ids}):
            folder = f"quarantine/{catalog.project}/{name}/"
            report.quarantined_rows += await self._files.erase_in_place(folder, erased, report)

    async def _delete_garbage(self, streams: Sequence[Source], report: EraseReport) -> None:
        """Delete replaced objects, and objects that a process wrote but did not register before it died."""
        for source in streams:
            folder = self._objects.bucket_uri(f"sources/{source.project}/{source.id}/")
            old = await asyncio.to_thread(self._objects.older_than, folder, ORPHAN_SECONDS)
            known = {s.uri for s in await self._archive.segments(source.project, source.id)}
            orphans = [object_key(uri) for uri in old if uri not in known]
            await self._tombstones.add_garbage(orphans)
            report.objects += len(orphans)
        for key in await self._tombstones.garbage():
            await self._delete(key)
            await self._tombstones.deleted(key)

    async def _not_erased(
        self, catalog: Catalog, sources: Sequence[Source], erased: ErasedEntity
    ) -> AsyncIterator[str]:
        """One message per place where data of the entity remain, with what to do about it."""
        for source in sources:
            if isinstance(source.kind, ParquetSource):
                yield (
                    f"{source.kind.uri}: the table of {source.name} belongs to its owner; "
                    "remove the entity's rows there. Rows known before this erasure are not materialized "
                    "again, but training sets read what the table holds."
                )
            elif source.is_stream:
                yield (
                    f"{source.name}: its Kafka topic keeps the records until their retention ends; "
                    "they are skipped when they are read again."
                )
        own = {v.id for v in _stored_views(catalog, erased.entity)}
        others = {
            v.base_name
            for v in catalog.live_views()
            if isinstance(v.kind, StreamView)
            and v.id not in own
            and any(s.id == v.kind.source for s in sources)
        }
        for name in sorted(others):
            yield f"{name}: its aggregates over other entities include the events until RebuildOnlineStore."
        for found in await self._training_sets.list(catalog.project, limit=100_000):
            rows = await self._files.count(found.uri, erased)
            if rows:
                yield (
                    f"{found.name}: {rows} rows of a training set, which is immutable; "
                    f"build it again and delete {found.uri}."
                )
        yield (
            "prediction.logged and outcome.recorded: Kafka and the monitor's queue may hold predictions that "
            "are not archived yet; erase again when their retention is over. "
            "The monitor's counts name no entity."
        )


def _stored_views(catalog: Catalog, entity: Entity) -> Iterator[View]:
    """Every version of every stored view of an entity, also of deleted views."""
    for view in catalog.views.values():
        if view.entity == entity.id and isinstance(view.kind, (BatchView, StreamView)):
            yield view
