"""Models, their policies, versions with their references, and variants, in PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache

from flywheel_common.errors import FlywheelError
from flywheel_common.postgres.pool import Connection, Pool, connection, transaction
from flywheel_monitor.ingest.batches import PredictionColumns, Role, VariantKey
from flywheel_monitor.models.names import ModelName
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.references.errors import ReferencePending
from flywheel_monitor.references.ports import ReferenceSource
from flywheel_monitor.references.reference import (
    Reference,
    ScoreReference,
    score_reference_from_json,
    score_reference_to_json,
)
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.store.postgres.variants import Variant
from flywheel_monitor.windows.bins import ColumnReference
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.output import Output
from flywheel_monitor.windows.support import SUPPORT

_ADD_MODEL = "INSERT INTO model (name, project) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING"
_MODEL = "SELECT id FROM model WHERE name = $1"
_MODELS = "SELECT id, name, policy FROM model ORDER BY id"
_ADD_VERSION = """
INSERT INTO model_version (model_id, name, reference_hash, reference, reference_reason, metrics, output)
VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (name) DO NOTHING
"""
_VERSION_COLUMNS = """
SELECT v.id, v.name, v.model_id, m.name AS model, v.reference_hash, v.reference, v.reference_reason,
    v.metrics, v.score_reference, v.first_labels, v.output, v.rolled_up,
    v.minutes_from_us"""
_VERSION_TABLES = "\nFROM model_version v JOIN model m ON m.id = v.model_id\n"
SELECT_VERSION = _VERSION_COLUMNS + _VERSION_TABLES
_VERSION = SELECT_VERSION + "WHERE v.name = $1"
_ADD_VARIANT = """
INSERT INTO variant (model_version_id, release, rollout, role, generation) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (model_version_id, release, rollout, role, generation) DO NOTHING
"""
_VARIANT = """
SELECT id FROM variant
WHERE model_version_id = $1 AND release = $2 AND rollout = $3 AND role = $4 AND generation = $5
"""
_VERSION_OF_VARIANT = (
    _VERSION_COLUMNS
    + ", t.release, t.rollout, t.role, t.generation"
    + _VERSION_TABLES
    + "JOIN variant t ON t.model_version_id = v.id WHERE t.id = $1"
)
_POLICY = "SELECT policy FROM model WHERE name = $1"
_SET_POLICY = """
INSERT INTO model (name, project, policy) VALUES ($1, $2, $3) ON CONFLICT (name) DO UPDATE
    SET policy = excluded.policy
"""
_FIRST_WINDOW = "UPDATE model_version SET score_reference = $2 WHERE id = $1 AND score_reference IS NULL"
_FIRST_LABELS = "UPDATE model_version SET first_labels = $2 WHERE id = $1 AND first_labels IS NULL"
_CHAMPION = """
SELECT v.name FROM variant t JOIN model_version v ON v.id = t.model_version_id
    JOIN model m ON m.id = v.model_id
    LEFT JOIN LATERAL (
        SELECT time FROM (
            SELECT newest_us FROM prediction_pack WHERE variant_id = t.id ORDER BY last_us DESC LIMIT $2
        ) p, unnest(p.newest_us) AS time ORDER BY time DESC OFFSET $2 - 1 LIMIT 1
    ) supported ON true
    LEFT JOIN LATERAL (
        SELECT last_us FROM prediction_pack WHERE variant_id = t.id ORDER BY last_us DESC LIMIT 1
    ) newest ON true
WHERE m.name = $1 AND t.role = 1
ORDER BY supported.time DESC NULLS LAST, newest.last_us DESC NULLS LAST, t.id DESC LIMIT 1
"""
INLINE_SECONDS = 1.0
"""How long the consumer waits for the reference of a new version before its predictions are set aside."""
ASK_AGAIN_SECONDS = 5.0


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

    async def set_first_labels(self, version_id: int, counts: Sequence[int]) -> None:
        await self._conn.execute(_FIRST_LABELS, version_id, json.dumps(list(counts)))


class VersionCache:
    """Ids of models, versions and variants, which are created when a batch names them first. They are
    stored in transactions of their own, so that a cached id always exists in the database."""

    def __init__(self, pool: Pool, source: ReferenceSource) -> None:
        self._pool = pool
        self._source = source
        self._models: dict[str, int] = {}
        self._versions: dict[str, WatchedVersion] = {}
        self._variants: dict[VariantKey, Variant] = {}
        self._by_id: dict[int, Variant] = {}
        self._ask_again: dict[str, float] = {}
        """Version without reference → time of the loop at which its peers are asked again."""

    async def model_id(self, name: str) -> int:
        """The id of a model, which is created if it is new."""
        if name not in self._models:
            async with transaction(self._pool) as conn:
                await conn.execute(_ADD_MODEL, name, ModelName.parse(name).project)
                self._models[name] = await conn.fetchval(_MODEL, name)
        return self._models[name]

    async def known_variant(self, batch: PredictionColumns) -> Variant | None:
        """The variant of a batch, or None while the reference of its version cannot be fetched. A slow or
        absent peer is asked once in ASK_AGAIN_SECONDS, for INLINE_SECONDS at most."""
        name = batch.key.model_version
        loop = asyncio.get_running_loop()
        if loop.time() < self._ask_again.get(name, 0.0):
            return None
        try:
            return await self.variant(batch, INLINE_SECONDS)
        except ReferencePending:
            self._ask_again[name] = loop.time() + ASK_AGAIN_SECONDS
            return None

    def known_output(self, model_version: str) -> Output | None:
        """The output of a version, if the version is in memory; it never changes."""
        version = self._versions.get(model_version)
        return None if version is None else version.output

    async def variant(self, batch: PredictionColumns, seconds: float | None = None) -> Variant:
        """The variant of a batch; the reference of a new version is fetched first, in `seconds` at most.
        Raises ReferencePending while a peer is unavailable."""
        key = batch.key
        if key not in self._variants:
            version = await self._version(batch, seconds)
            async with transaction(self._pool) as conn:
                fields = (version.id, key.release, key.rollout, int(key.role), key.generation)
                await conn.execute(_ADD_VARIANT, *fields)
                variant = Variant(await conn.fetchval(_VARIANT, *fields), key, version)
            self._variants[key] = self._by_id[variant.id] = variant
        return self._variants[key]

    async def of_variant(self, variant_id: int) -> Variant:
        """The existing variant with this id."""
        if variant_id not in self._by_id:
            async with connection(self._pool) as conn:
                row = await conn.fetchrow(_VERSION_OF_VARIANT, variant_id)
            version = watched_version(row)
            key = VariantKey(
                version.model,
                version.name,
                row["release"],
                row["rollout"],
                Role(row["role"]),
                row["generation"],
            )
            self._by_id[variant_id] = Variant(variant_id, key, version)
        return self._by_id[variant_id]

    async def _version(self, batch: PredictionColumns, seconds: float | None) -> WatchedVersion:
        name = batch.key.model_version
        if name not in self._versions:
            async with connection(self._pool) as conn:
                row = await conn.fetchrow(_VERSION, name)
            self._versions[name] = (
                await self._add_version(batch, seconds) if row is None else watched_version(row)
            )
            self._ask_again.pop(name, None)
        return self._versions[name]

    async def _add_version(self, batch: PredictionColumns, seconds: float | None) -> WatchedVersion:
        key = batch.key
        try:
            async with asyncio.timeout(seconds):
                reference = await self._source.fetch(key.model_version)
        except TimeoutError:
            raise ReferencePending(f"The reference of {key.model_version} is not read yet.") from None
        except FlywheelError as error:
            if not error.retryable:
                raise
            raise ReferencePending(
                f"The reference of {key.model_version} cannot be read: {error.message}"
            ) from error
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
                json.dumps(reference.placed(batch.output, batch.outputs, batch.key.model_version).to_json()),
            )
            return watched_version(await conn.fetchrow(_VERSION, key.model_version))


def _policy(stored: str | None) -> MonitorPolicy:
    return MonitorPolicy() if stored is None else MonitorPolicy.from_json(json.loads(stored))


def output_from_json(stored: object) -> Output:
    return Output.from_json(json.loads(str(stored)))


@lru_cache(maxsize=256)
def _profile(reference: str, output: str) -> tuple[tuple[ColumnReference, ...], Layout]:
    """The stored profile and its layout, which never change. Both keep what is derived from them."""
    columns = tuple(ColumnReference.from_json(c) for c in json.loads(reference))
    return columns, Layout.of(columns, output_from_json(output))


def watched_version(row: Mapping[str, object]) -> WatchedVersion:
    columns, layout = _profile(str(row["reference"]), str(row["output"]))
    first = row["score_reference"]
    return WatchedVersion(
        id=int(str(row["id"])),
        name=str(row["name"]),
        model_id=int(str(row["model_id"])),
        model=str(row["model"]),
        reference=Reference(columns, json.loads(str(row["metrics"])), str(row["reference_reason"])),
        layout=layout,
        first_window=None if first is None else score_reference_from_json(json.loads(str(first))),
        first_labels=tuple(json.loads(str(row["first_labels"] or "[]"))),
        rolled_up=bool(row["rolled_up"]),
        minutes_from_us=int(str(row["minutes_from_us"])),
    )
