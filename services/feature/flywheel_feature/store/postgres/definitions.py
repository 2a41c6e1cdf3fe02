"""Definitions in PostgreSQL (port: apply.applied.DefinitionStore)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter

from flywheel_common.postgres.pool import DRIVER_ERRORS, Connection, Pool, alive, connection, transaction
from flywheel_feature.apply.lineage import ModelUses
from flywheel_feature.apply.plan import Action, ApplyPlan, Declared, Definition, make_plan
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import Entity, FeatureSet, Source, VersionRef, View

CHANNEL = "flywheel_feature_catalog"
POLL_SECONDS = 2.0

_LOAD = "SELECT project, kind, id, version, body, deleted_at FROM definition WHERE project = ANY($1)"
_REVISIONS = "SELECT project, revision FROM catalog_revision"
_LOCK = """
INSERT INTO catalog_revision (project, revision) VALUES ($1, 0)
ON CONFLICT (project) DO UPDATE SET revision = catalog_revision.revision
RETURNING revision
"""
_BUMP = "UPDATE catalog_revision SET revision = revision + 1 WHERE project = $1"
_PUT = """
INSERT INTO definition (project, kind, id, version, body) VALUES ($1, $2, $3, $4, $5::jsonb)
ON CONFLICT (project, kind, id, version) DO UPDATE SET body = excluded.body, deleted_at = NULL
"""
_DELETE = """
UPDATE definition SET deleted_at = now() WHERE project = $1 AND kind = $2 AND id = $3 AND deleted_at IS NULL
"""

_KINDS: dict[str, tuple[type[Any], TypeAdapter[Any]]] = {
    "entity": (Entity, TypeAdapter(Entity)),
    "source": (Source, TypeAdapter(Source)),
    "view": (View, TypeAdapter(View)),
    "feature_set": (FeatureSet, TypeAdapter(FeatureSet)),
}
_COLLECTIONS = {"entities": "entity", "sources": "source", "views": "view", "featureSets": "feature_set"}


class PostgresDefinitions:
    """`poll_seconds`: how often `changes` yields without a notification, as notifications can be lost."""

    def __init__(self, pool: Pool, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._pool = pool
        self._poll_seconds = poll_seconds

    async def plan(
        self, project: str, declared: Declared, delete_names: list[str], now: datetime, uses: ModelUses
    ) -> ApplyPlan:
        async with transaction(self._pool, isolation="repeatable_read", readonly=True) as conn:
            return make_plan(await _read(conn, project), declared, delete_names, now, uses)

    async def apply(
        self,
        project: str,
        declared: Declared,
        delete_names: list[str],
        now: datetime,
        uses: ModelUses,
        *,
        within: Connection | None = None,
    ) -> ApplyPlan:
        if within is not None:
            return await _apply(within, project, declared, delete_names, now, uses)
        async with transaction(self._pool) as conn:
            return await _apply(conn, project, declared, delete_names, now, uses)

    async def changed(self, known: Mapping[str, int]) -> list[Catalog]:
        # A project whose apply commits between the two statements is read again by the next call.
        async with connection(self._pool) as conn:
            revisions = {r["project"]: r["revision"] for r in await conn.fetch(_REVISIONS)}
            stale = [p for p, revision in revisions.items() if known.get(p) != revision]
            rows = await conn.fetch(_LOAD, stale) if stale else []
        return [_catalog(p, revisions[p], [r for r in rows if r["project"] == p]) for p in stale]

    async def changes(self) -> AsyncGenerator[None]:
        notified = asyncio.Event()

        def on_notification(*_: Any) -> None:
            notified.set()

        async with connection(self._pool) as conn:
            await conn.add_listener(CHANNEL, on_notification)
            try:
                while alive(conn):
                    notified.clear()
                    yield
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._poll_seconds):
                            await notified.wait()
            finally:
                with suppress(*DRIVER_ERRORS):
                    await conn.remove_listener(CHANNEL, on_notification)


async def _apply(
    conn: Connection,
    project: str,
    declared: Declared,
    delete_names: list[str],
    now: datetime,
    uses: ModelUses,
) -> ApplyPlan:
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


async def _read(conn: Connection, project: str) -> Catalog:
    revision = await conn.fetchval("SELECT revision FROM catalog_revision WHERE project = $1", project)
    return _catalog(project, revision or 0, await conn.fetch(_LOAD, [project]))


def _record(item: Definition) -> tuple[str, str, str, int, str]:
    kind = next(k for k, (cls, _) in _KINDS.items() if isinstance(item, cls))
    body = _KINDS[kind][1].dump_json(item).decode()
    return item.project, kind, item.id, getattr(item, "version", 0), body


def _catalog(project: str, revision: int, rows: Sequence[Any]) -> Catalog:
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
