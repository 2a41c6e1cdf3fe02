"""Models, their policies, versions with their references, and variants, in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Mapping

from flywheel_common.postgres.pool import Connection, Pool, connection, transaction
from flywheel_monitor.ingest.batches import VariantKey
from flywheel_monitor.models.names import ModelName
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.references.ports import ReferenceSource
from flywheel_monitor.references.reference import (
    Reference,
    ScoreReference,
    score_reference_from_json,
    score_reference_to_json,
)
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.bins import ColumnReference
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.support import SUPPORT

_ADD_MODEL = "INSERT INTO model (name, project) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING"
_MODEL = "SELECT id FROM model WHERE name = $1"
_MODELS = "SELECT id, name, policy FROM model ORDER BY id"
_ADD_VERSION = """
INSERT INTO model_version (model_id, name, reference_hash, reference, reference_reason, metrics)
VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (name) DO NOTHING
"""
SELECT_VERSION = """
SELECT v.id, v.name, v.model_id, m.name AS model, v.reference_hash, v.reference, v.reference_reason,
    v.metrics, v.score_reference
FROM model_version v JOIN model m ON m.id = v.model_id
"""
_VERSION = SELECT_VERSION + "WHERE v.name = $1"
_ADD_VARIANT = """
INSERT INTO variant (model_version_id, release, rollout, role, generation) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (model_version_id, release, rollout, role, generation) DO NOTHING
"""
_VARIANT = """
SELECT id FROM variant
WHERE model_version_id = $1 AND release = $2 AND rollout = $3 AND role = $4 AND generation = $5
"""
_VERSION_OF_VARIANT = SELECT_VERSION + "JOIN variant t ON t.model_version_id = v.id WHERE t.id = $1"
_POLICY = "SELECT policy FROM model WHERE name = $1"
_SET_POLICY = """
INSERT INTO model (name, project, policy) VALUES ($1, $2, $3) ON CONFLICT (name) DO UPDATE
    SET policy = excluded.policy
"""
_FIRST_WINDOW = "UPDATE model_version SET score_reference = $2 WHERE id = $1 AND score_reference IS NULL"
_CHAMPION = """
SELECT v.name FROM variant t JOIN model_version v ON v.id = t.model_version_id
    JOIN model m ON m.id = v.model_id
    LEFT JOIN LATERAL (
        SELECT event_time FROM prediction WHERE variant_id = t.id
        ORDER BY event_time DESC OFFSET $2 - 1 LIMIT 1
    ) supported ON true
    LEFT JOIN LATERAL (
        SELECT event_time FROM prediction WHERE variant_id = t.id ORDER BY event_time DESC LIMIT 1
    ) newest ON true
WHERE m.name = $1 AND t.role = 1
ORDER BY supported.event_time DESC NULLS LAST, newest.event_time DESC NULLS LAST, t.id DESC LIMIT 1
"""


class VersionRows:
    """`Policies` and `Versions` on the transaction's connection."""

    _conn: Connection

    async def set_policy(self, model: str, policy: MonitorPolicy) -> None:
        await self._conn.execute(
            _SET_POLICY, model, ModelName.parse(model).project, json.dumps(policy.to_json())
        )

    async def policy(self, model: str) -> MonitorPolicy | None:
        row = await self._conn.fetchrow(_POLICY, model)
        return None if row is None else _policy(row["policy"])

    async def policies(self) -> list[tuple[int, str, MonitorPolicy]]:
        return [(r["id"], r["name"], _policy(r["policy"])) for r in await self._conn.fetch(_MODELS)]

    async def version(self, name: str) -> WatchedVersion | None:
        row = await self._conn.fetchrow(_VERSION, name)
        return None if row is None else watched_version(row)

    async def champion(self, model: str) -> str | None:
        name: str | None = await self._conn.fetchval(_CHAMPION, model, SUPPORT)
        return name

    async def set_first_window(self, version_id: int, reference: ScoreReference) -> None:
        await self._conn.execute(_FIRST_WINDOW, version_id, json.dumps(score_reference_to_json(reference)))


class VersionCache:
    """Ids of models, versions and variants, which are created when a batch names them first. They are
    stored in transactions of their own, so that a cached id always exists in the database."""

    def __init__(self, pool: Pool, source: ReferenceSource) -> None:
        self._pool = pool
        self._source = source
        self._models: dict[str, int] = {}
        self._versions: dict[str, WatchedVersion] = {}
        self._variants: dict[VariantKey, int] = {}
        self._of_variants: dict[int, WatchedVersion] = {}

    async def model_id(self, name: str) -> int:
        """The id of a model, which is created if it is new."""
        if name not in self._models:
            async with transaction(self._pool) as conn:
                await conn.execute(_ADD_MODEL, name, ModelName.parse(name).project)
                self._models[name] = await conn.fetchval(_MODEL, name)
        return self._models[name]

    async def variant(self, key: VariantKey) -> tuple[int, WatchedVersion]:
        """The id of a variant and its version; the reference of a new version is fetched first. Raises a
        retryable FlywheelError while a peer is unavailable."""
        version = await self._version(key)
        if key not in self._variants:
            async with transaction(self._pool) as conn:
                fields = (version.id, key.release, key.rollout, int(key.role), key.generation)
                await conn.execute(_ADD_VARIANT, *fields)
                self._variants[key] = await conn.fetchval(_VARIANT, *fields)
        return self._variants[key], version

    async def of_variant(self, variant_id: int) -> WatchedVersion:
        """The version of an existing variant."""
        if variant_id not in self._of_variants:
            async with connection(self._pool) as conn:
                row = await conn.fetchrow(_VERSION_OF_VARIANT, variant_id)
            self._of_variants[variant_id] = watched_version(row)
        return self._of_variants[variant_id]

    async def _version(self, key: VariantKey) -> WatchedVersion:
        name = key.model_version
        if name not in self._versions:
            async with connection(self._pool) as conn:
                row = await conn.fetchrow(_VERSION, name)
            self._versions[name] = await self._add_version(key) if row is None else watched_version(row)
        return self._versions[name]

    async def _add_version(self, key: VariantKey) -> WatchedVersion:
        reference = await self._source.fetch(key.model_version)
        model_id = await self.model_id(key.model)
        columns = json.dumps([c.to_json() for c in reference.columns])
        async with transaction(self._pool) as conn:
            await conn.execute(
                _ADD_VERSION,
                model_id,
                key.model_version,
                reference.hash,
                columns,
                reference.reason,
                json.dumps(dict(reference.metrics)),
            )
            return watched_version(await conn.fetchrow(_VERSION, key.model_version))


def _policy(stored: str | None) -> MonitorPolicy:
    return MonitorPolicy() if stored is None else MonitorPolicy.from_json(json.loads(stored))


def watched_version(row: Mapping[str, object]) -> WatchedVersion:
    columns = tuple(ColumnReference.from_json(c) for c in json.loads(str(row["reference"])))
    first = row["score_reference"]
    return WatchedVersion(
        id=int(str(row["id"])),
        name=str(row["name"]),
        model_id=int(str(row["model_id"])),
        model=str(row["model"]),
        reference=Reference(columns, json.loads(str(row["metrics"])), str(row["reference_reason"])),
        layout=Layout.of(columns),
        first_window=None if first is None else score_reference_from_json(json.loads(str(first))),
    )
