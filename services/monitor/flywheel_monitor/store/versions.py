"""Models, versions with their references, and variants: small, cached, and stored in transactions of their own, so that
an id in the cache is always an id in the database."""

from __future__ import annotations

import json
from collections.abc import Mapping

from flywheel_common.postgres import Connection, Pool, connection, transaction
from flywheel_monitor.batches import VariantKey
from flywheel_monitor.bins import ColumnReference
from flywheel_monitor.layout import Layout
from flywheel_monitor.policy import MonitorPolicy
from flywheel_monitor.references import (
    Reference,
    ReferenceSource,
    WatchedVersion,
    score_reference_from_json,
    score_reference_to_json,
)
from flywheel_monitor.resource_names import ModelName
from flywheel_monitor.score_shift import ScoreReference

_ADD_MODEL = "INSERT INTO model (name, project) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING"
_MODEL = "SELECT id FROM model WHERE name = $1"
_MODELS = "SELECT id, name, policy FROM model ORDER BY id"
_ADD_VERSION = """
INSERT INTO model_version (model_id, name, reference_hash, reference, reference_reason, metrics)
VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (name) DO NOTHING
"""
_VERSION_COLUMNS = """
SELECT v.id, v.name, v.model_id, m.name AS model, v.reference_hash, v.reference, v.reference_reason, v.metrics, v.score_reference
FROM model_version v JOIN model m ON m.id = v.model_id
"""
_VERSION = _VERSION_COLUMNS + "WHERE v.name = $1"
_VERSION_BY_ID = _VERSION_COLUMNS + "WHERE v.id = $1"
_ADD_VARIANT = """
INSERT INTO variant (model_version_id, release, rollout, role) VALUES ($1, $2, $3, $4)
ON CONFLICT (model_version_id, release, rollout, role) DO NOTHING
"""
_VARIANT = (
    "SELECT id FROM variant WHERE model_version_id = $1 AND release = $2 AND rollout = $3 AND role = $4"
)
_VARIANT_VERSION = "SELECT model_version_id FROM variant WHERE id = $1"
_POLICY = "SELECT policy FROM model WHERE name = $1"
_SET_POLICY = """
INSERT INTO model (name, project, policy) VALUES ($1, $2, $3) ON CONFLICT (name) DO UPDATE SET policy = excluded.policy
"""
_FIRST_WINDOW = "UPDATE model_version SET score_reference = $2 WHERE id = $1 AND score_reference IS NULL"
_CHAMPION = """
SELECT v.name FROM variant t JOIN model_version v ON v.id = t.model_version_id JOIN model m ON m.id = v.model_id
WHERE m.name = $1 AND t.role = 1 ORDER BY t.last_event DESC, t.id DESC LIMIT 1
"""


class Versions:
    """What the monitor knows about models and their versions."""

    def __init__(self, pool: Pool, source: ReferenceSource) -> None:
        self._pool = pool
        self._source = source
        self._models: dict[str, int] = {}
        self._versions: dict[str, WatchedVersion] = {}
        self._by_id: dict[int, WatchedVersion] = {}
        self._variants: dict[VariantKey, int] = {}
        self._variant_versions: dict[int, int] = {}

    async def model_id(self, name: str) -> int:
        """The id of a model, made when it is new."""
        if name not in self._models:
            async with transaction(self._pool) as conn:
                await conn.execute(_ADD_MODEL, name, ModelName.parse(name).project)
                self._models[name] = await conn.fetchval(_MODEL, name)
        return self._models[name]

    async def variant(self, key: VariantKey) -> tuple[int, WatchedVersion]:
        """The id of a variant and its version; a new version's reference is asked of the peers first. Raises a
        retryable FlywheelError while they do not answer."""
        version = await self.version(key.model_version) or await self._admit(key)
        if key not in self._variants:
            async with transaction(self._pool) as conn:
                fields = (version.id, key.release, key.rollout, int(key.role))
                await conn.execute(_ADD_VARIANT, *fields)
                variant_id = await conn.fetchval(_VARIANT, *fields)
            self._variants[key] = variant_id
            self._variant_versions[variant_id] = version.id
        return self._variants[key], version

    async def version(self, name: str) -> WatchedVersion | None:
        """A version that was seen, or None."""
        if name not in self._versions:
            async with connection(self._pool) as conn:
                row = await conn.fetchrow(_VERSION, name)
            if row is None:
                return None
            self._keep(_version(row))
        return self._versions[name]

    async def version_by_id(self, version_id: int, *, fresh: bool = False) -> WatchedVersion:
        if fresh or version_id not in self._by_id:
            async with connection(self._pool) as conn:
                self._keep(_version(await conn.fetchrow(_VERSION_BY_ID, version_id)))
        return self._by_id[version_id]

    async def version_of_variant(self, variant_id: int) -> WatchedVersion:
        if variant_id not in self._variant_versions:
            async with connection(self._pool) as conn:
                self._variant_versions[variant_id] = await conn.fetchval(_VARIANT_VERSION, variant_id)
        return await self.version_by_id(self._variant_versions[variant_id])

    async def champion(self, model: str) -> str | None:
        """The version that answered last as champion."""
        async with connection(self._pool) as conn:
            name: str | None = await conn.fetchval(_CHAMPION, model)
        return name

    async def set_first_window(
        self, conn: Connection, version: WatchedVersion, reference: ScoreReference
    ) -> WatchedVersion:
        """Keeps the first window's scores as reference, in the caller's transaction; the cache learns them on the next read."""
        await conn.execute(_FIRST_WINDOW, version.id, json.dumps(score_reference_to_json(reference)))
        self._by_id.pop(version.id, None)
        self._versions.pop(version.name, None)
        return WatchedVersion(
            version.id,
            version.name,
            version.model_id,
            version.model,
            version.reference,
            version.layout,
            reference,
        )

    async def policies(self) -> list[tuple[int, str, MonitorPolicy]]:
        """(id, name, policy) of every model."""
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_MODELS)
        return [(r["id"], r["name"], _policy(r["policy"])) for r in rows]

    async def policy(self, model: str) -> MonitorPolicy | None:
        """The policy of a model, the default one when it was only seen; None when it was never seen nor set."""
        async with connection(self._pool) as conn:
            row = await conn.fetchrow(_POLICY, model)
        return None if row is None else _policy(row["policy"])

    async def set_policy(self, conn: Connection, model: str, policy: MonitorPolicy) -> None:
        """In the caller's transaction."""
        await conn.execute(_SET_POLICY, model, ModelName.parse(model).project, json.dumps(policy.to_json()))

    async def _admit(self, key: VariantKey) -> WatchedVersion:
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
        found = await self.version(key.model_version)
        assert found is not None
        return found

    def _keep(self, version: WatchedVersion) -> None:
        self._versions[version.name] = version
        self._by_id[version.id] = version


def _policy(stored: str | None) -> MonitorPolicy:
    return MonitorPolicy() if stored is None else MonitorPolicy.from_json(json.loads(stored))


def _version(row: Mapping[str, object]) -> WatchedVersion:
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
