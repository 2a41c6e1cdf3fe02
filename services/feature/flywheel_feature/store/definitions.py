"""Definitions in PostgreSQL, and the copy of them in memory that every read uses.

An apply bumps its project's revision and notifies; every process listens, and compares revisions now and then besides, so that a
lost notification costs seconds, not correctness. While PostgreSQL is away the copy goes on serving.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

import asyncpg
from pydantic import TypeAdapter

from flywheel_common.errors import FlywheelError, NotFound
from flywheel_common.logs import get_logger
from flywheel_common.postgres import Connection, Pool, connection, transaction
from flywheel_feature.apply_plan import Action, ApplyPlan, Declared, Definition, make_plan
from flywheel_feature.catalog import Catalog
from flywheel_feature.definitions import Entity, FeatureSet, Source, VersionRef, View
from flywheel_feature.lineage import ModelUses

log = get_logger(__name__)

CHANNEL = "flywheel_feature_catalog"
POLL_SECONDS = 2.0
MISS_SECONDS = 0.2

_LOAD = "SELECT project, kind, id, version, body, deleted_at FROM definition WHERE project = ANY($1)"
_REVISIONS = "SELECT project, revision FROM catalog_revision"
_LOCK = """
INSERT INTO catalog_revision (project, revision) VALUES ($1, 0) ON CONFLICT (project) DO UPDATE SET revision = catalog_revision.revision
RETURNING revision
"""
_BUMP = "UPDATE catalog_revision SET revision = revision + 1 WHERE project = $1"
_PUT = """
INSERT INTO definition (project, kind, id, version, body) VALUES ($1, $2, $3, $4, $5::jsonb)
ON CONFLICT (project, kind, id, version) DO UPDATE SET body = excluded.body, deleted_at = NULL
"""
_DELETE = "UPDATE definition SET deleted_at = now() WHERE project = $1 AND kind = $2 AND id = $3 AND deleted_at IS NULL"

_KINDS: dict[str, tuple[type[Any], TypeAdapter[Any]]] = {
    "entity": (Entity, TypeAdapter(Entity)),
    "source": (Source, TypeAdapter(Source)),
    "view": (View, TypeAdapter(View)),
    "feature_set": (FeatureSet, TypeAdapter(FeatureSet)),
}
_COLLECTIONS = {"entities": "entity", "sources": "source", "views": "view", "featureSets": "feature_set"}


class DefinitionStore:
    """Definitions and their cache. `catalog` and `find` never wait for PostgreSQL when the cache knows the answer."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._catalogs: dict[str, Catalog] = {}
        self._changed = asyncio.Event()
        self._missed_at = 0.0
        self._listeners: list[Callable[[], None]] = []

    def catalog(self, project: str) -> Catalog:
        """The project as last read; empty when there is none."""
        return self._catalogs.get(project) or Catalog(project)

    def projects(self) -> list[Catalog]:
        return list(self._catalogs.values())

    def on_change(self, listener: Callable[[], None]) -> None:
        """`listener()` is called after the cache took in a change."""
        self._listeners.append(listener)

    async def after_miss(self, project: str) -> Catalog:
        """The project read again, for a name that the cache lacks; at most five times a second."""
        now = time.monotonic()
        if now - self._missed_at > MISS_SECONDS:
            self._missed_at = now
            with suppress(FlywheelError):
                await self.refresh()
        return self.catalog(project)

    async def knowing(self, project: str, look: Callable[[Catalog], object]) -> Catalog:
        """The cached project, read again when `look` raises NotFound."""
        catalog = self.catalog(project)
        try:
            look(catalog)
        except NotFound:
            return await self.after_miss(project)
        return catalog

    async def current(self, project: str) -> Catalog:
        """The project with every committed change. Raises Unavailable while PostgreSQL is away."""
        await self.refresh()
        return self.catalog(project)

    async def refresh(self) -> None:
        """Read what changed since the last time."""
        async with connection(self._pool) as conn:
            revisions = {r["project"]: r["revision"] for r in await conn.fetch(_REVISIONS)}
            stale = [
                p
                for p, revision in revisions.items()
                if self.catalog(p).revision != revision or p not in self._catalogs
            ]
            rows = await conn.fetch(_LOAD, stale) if stale else []
        for project in stale:
            self._catalogs[project] = _catalog(
                project, revisions[project], [r for r in rows if r["project"] == project]
            )
        if stale:
            for listener in self._listeners:
                listener()

    async def plan(
        self, project: str, declared: Declared, delete_names: list[str], now: datetime, uses: ModelUses
    ) -> ApplyPlan:
        """What an apply would do, against the database."""
        async with transaction(self._pool, isolation="repeatable_read", readonly=True) as conn:
            return make_plan(await _read(conn, project), declared, delete_names, now, uses)

    async def apply(
        self,
        conn: Connection,
        project: str,
        declared: Declared,
        delete_names: list[str],
        now: datetime,
        uses: ModelUses,
    ) -> ApplyPlan:
        """Plan and write inside the caller's transaction; applies of one project take turns. Raises for violations."""
        await conn.fetchval(_LOCK, project)
        plan = make_plan(await _read(conn, project), declared, delete_names, now, uses)
        plan.raise_violations()
        changed = [c for c in plan.changes if c.action is not Action.UNCHANGED]
        for change in changed:
            if change.definition is not None:
                await conn.execute(_PUT, *_record(change.definition))
            else:
                collection, _, item = change.name.removeprefix(f"projects/{project}/").partition("/")
                await conn.execute(_DELETE, project, _COLLECTIONS[collection], item)
        if changed:
            await conn.execute(_BUMP, project)
            await conn.execute("SELECT pg_notify($1, $2)", CHANNEL, project)
        return plan

    async def follow(self) -> None:
        """Keep the cache current until cancelled."""
        while True:
            try:
                async with connection(self._pool) as conn:
                    await conn.add_listener(CHANNEL, self._notified)
                    try:
                        while not conn.is_closed():
                            self._changed.clear()
                            await self.refresh()
                            with suppress(TimeoutError):
                                async with asyncio.timeout(POLL_SECONDS):
                                    await self._changed.wait()
                    finally:
                        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                            await conn.remove_listener(CHANNEL, self._notified)
            except FlywheelError as error:
                log.warning("definitions not refreshed", reason=error.reason)
            await asyncio.sleep(0.5)

    def _notified(self, *_: Any) -> None:
        self._changed.set()


async def _read(conn: Connection, project: str) -> Catalog:
    revision = await conn.fetchval("SELECT revision FROM catalog_revision WHERE project = $1", project)
    return _catalog(project, revision or 0, await conn.fetch(_LOAD, [project]))


def _record(item: Definition) -> tuple[str, str, str, int, str]:
    kind = next(k for k, (cls, _) in _KINDS.items() if isinstance(item, cls))
    body = _KINDS[kind][1].dump_json(item).decode()
    return item.project, kind, item.id, getattr(item, "version", 0), body


def _catalog(project: str, revision: int, rows: list[Any]) -> Catalog:
    items: dict[str, list[tuple[Any, bool]]] = {kind: [] for kind in _KINDS}
    for row in rows:
        value = _KINDS[row["kind"]][1].validate_python(json.loads(row["body"]))
        items[row["kind"]].append((value, row["deleted_at"] is None))
    return Catalog(
        project=project,
        revision=revision,
        entities={e.id: e for e, live in items["entity"] if live},
        sources={s.id: s for s, live in items["source"] if live},
        views={VersionRef(v.id, v.version): v for v, _ in items["view"]},
        feature_sets={VersionRef(s.id, s.version): s for s, _ in items["feature_set"]},
        latest_views=_latest(items["view"]),
        latest_feature_sets=_latest(items["feature_set"]),
    )


def _latest(items: list[tuple[Any, bool]]) -> dict[str, Any]:
    return {v.id: v for v, live in sorted(items, key=lambda i: i[0].version) if live}
