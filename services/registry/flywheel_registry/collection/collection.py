"""Collects objects that no version declares, abandoned parts of uploads, and what deleted versions held.

A digest that an artifact of any version declares is never collected, whether its bytes are stored or still
to come, and whether the version was deleted or not: only a purge, after the grace period, releases what a
deleted version declares. An upload of a digest that is being collected waits for the lock of the digest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from flywheel_common.clock import Clock
from flywheel_common.postgres.transactions import Store
from flywheel_common.storage.objects import ObjectInfo, ObjectStore, content_key
from flywheel_common.telemetry.logs import get_logger
from flywheel_registry.artifacts.parts import PREFIX
from flywheel_registry.collection.errors import InvalidGrace
from flywheel_registry.models.ports import ModelRecords

log = get_logger(__name__)

DEFAULT_GRACE = timedelta(days=7)
SHORTEST_GRACE = timedelta(hours=1)
"""Longer than an upload of the largest file takes."""
STEP_SECONDS = 5.0
BATCH = 500
SHARDS = (*(f"sha256/{shard:02x}/" for shard in range(256)), PREFIX)
"""The prefixes that one collection looks at, one after the other."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What one step has done. `next_shard` is where the next step begins, None at the end."""

    examined: int = 0
    objects: int = 0
    bytes: int = 0
    purged_versions: int = 0
    next_shard: int | None = None


class ArtifactCollection:
    """Collects artifacts step by step."""

    def __init__(self, store: Store[ModelRecords], objects: ObjectStore, clock: Clock) -> None:
        self._store = store
        self._objects = objects
        self._clock = clock

    async def step(self, shard: int, grace: timedelta | None, *, dry_run: bool) -> Collected:
        """Look at shards from `shard` on, for about STEP_SECONDS; a `dry_run` only counts.

        Raises InvalidGrace.
        """
        grace = DEFAULT_GRACE if grace is None else grace
        if grace < SHORTEST_GRACE:
            raise InvalidGrace(f"The grace period is {grace}, it must be at least {SHORTEST_GRACE}.")
        started = self._clock.now()
        before = started - grace
        done = Collected()
        if shard == 0:
            done = replace(done, purged_versions=await self._purge(before, dry_run=dry_run))
        while shard < len(SHARDS):
            done = await self._shard(SHARDS[shard], before, done, dry_run=dry_run)
            shard += 1
            if (self._clock.now() - started).total_seconds() > STEP_SECONDS:
                break
        return replace(done, next_shard=shard if shard < len(SHARDS) else None)

    async def _purge(self, before: datetime, *, dry_run: bool) -> int:
        if dry_run:
            async with self._store.reading() as records:
                return await records.purgeable_versions(before)
        total = 0
        while True:
            async with self._store.transaction() as records:
                count = await records.purge_versions(before, BATCH)
            total += count
            if count < BATCH:
                return total

    async def _shard(self, prefix: str, before: datetime, done: Collected, *, dry_run: bool) -> Collected:
        old: list[ObjectInfo] = []
        async for info in self._objects.list(prefix):
            done = replace(done, examined=done.examined + 1)
            if info.modified < before:
                old.append(info)
            if len(old) == BATCH:
                done = await self._batch(old, done, dry_run=dry_run)
                old = []
        return await self._batch(old, done, dry_run=dry_run)

    async def _batch(self, old: list[ObjectInfo], done: Collected, *, dry_run: bool) -> Collected:
        digests = [info.key.rpartition("/")[2] for info in old if not info.key.startswith(PREFIX)]
        async with self._store.reading() as records:
            declared = await records.declared_digests(digests) if digests else set()
        for info in old:
            digest = info.key.rpartition("/")[2]
            if digest in declared:
                continue
            if not dry_run and not await self._delete(info, digest):
                continue
            done = replace(done, objects=done.objects + 1, bytes=done.bytes + info.size)
        return done

    async def _delete(self, info: ObjectInfo, digest: str) -> bool:
        """Delete an object unless it is declared by now; return whether it was deleted."""
        if not info.key.startswith(PREFIX):
            if info.key != content_key(digest):
                log.warning("an object that is no artifact is left", key=info.key)
                return False
            async with self._store.transaction() as records:
                await records.lock_digest(digest)
                if await records.declared_digests([digest]):
                    return False
                await self._objects.delete(info.key)
                await records.forget_digest(digest)
            return True
        await self._objects.delete(info.key)
        return True
