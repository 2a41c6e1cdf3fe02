"""Models, their policies, versions with their references, and variants, in PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
_KNOWS_MODEL = """
SELECT EXISTS (SELECT FROM model WHERE name = $1) OR EXISTS (SELECT FROM waiting_batch WHERE model = $1)
"""
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
# The profile of a version never changes: it is not read again where the id is that of a known one ($2).
_WATCHED = """
SELECT v.id, v.name, v.model_id, m.name AS model, m.policy, v.score_reference, v.first_labels, v.rolled_up,
    v.minutes_from_us, CASE WHEN v.id <> $2 THEN v.reference END AS reference,
    CASE WHEN v.id <> $2 THEN v.reference_reason END AS reference_reason,
    CASE WHEN v.id <> $2 THEN v.metrics END AS metrics, CASE WHEN v.id <> $2 THEN v.output END AS output
FROM model_version v JOIN model m ON m.id = v.model_id WHERE v.name = $1
"""
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
MOST_PROFILES = 256
"""Versions whose profile is in memory for reads."""


class VersionRows:
    """`Policies` and `Versions` on the transaction's connection."""

    _conn: Connection
    _versions: VersionCache

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
        found = await self.watched(name)
        return None if found is None else found[0]

    async def watched(self, name: str) -> tuple[WatchedVersion, MonitorPolicy] | None:
        known = self._versions.profile(name)
        row = await self._conn.fetchrow(_WATCHED, name, 0 if known is None else known.version_id)
        if row is None:
            return None
        if row["reference"] is not None:
            known = self._versions.keep_profile(name, profile_of(row))
        assert known is not None
        return _watched(row, known), _policy(row["policy"])

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
        self._profiles: dict[str, Profile] = {}
        self._ask_again: dict[str, float] = {}
        """Version without reference, or unknown model → time of the loop at which peers are asked again."""

    def profile(self, name: str) -> Profile | None:
        """The profile of a version that was read before."""
        return self._profiles.get(name)

    def keep_profile(self, name: str, profile: Profile) -> Profile:
        """Keep it in memory, among the MOST_PROFILES last ones."""
        self._profiles[name] = profile
        if len(self._profiles) > MOST_PROFILES:
            del self._profiles[next(iter(self._profiles))]
        return profile

    async def model_id(self, name: str) -> int:
        """The id of a model, which is created if it is new."""
        if name not in self._models:
            async with transaction(self._pool) as conn:
                await conn.execute(_ADD_MODEL, name, ModelName.parse(name).project)
                self._models[name] = await conn.fetchval(_MODEL, name)
        return self._models[name]

    async def knows_model(self, name: str) -> bool:
        """`Ingestion.knows_model`. A slow or absent registry is asked for INLINE_SECONDS at most."""
        if name in self._models:
            return True
        async with connection(self._pool) as conn:
            if await conn.fetchval(_KNOWS_MODEL, name):
                return True
        loop = asyncio.get_running_loop()
        if loop.time() < self._ask_again.get(name, 0.0):
            return False
        try:
            async with asyncio.timeout(INLINE_SECONDS):
                found = await self._source.has_model(name)
        except TimeoutError:
            return True
        except FlywheelError as error:
            if not error.retryable:
                raise
            return True
        if not found:
            self._ask_again = {n: at for n, at in self._ask_again.items() if at > loop.time()}
            self._ask_again[name] = loop.time() + ASK_AGAIN_SECONDS
        return found

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


@dataclass(frozen=True)
class Profile:
    """What never changes of a version. Reference and layout keep what is derived from them."""

    version_id: int
    reference: Reference
    layout: Layout


@lru_cache(maxsize=MOST_PROFILES)
def _reference(reference: str, output: str, metrics: str, reason: str) -> tuple[Reference, Layout]:
    columns = tuple(ColumnReference.from_json(c) for c in json.loads(reference))
    return Reference(columns, json.loads(metrics), reason), Layout.of(columns, output_from_json(output))


def profile_of(row: Mapping[str, object]) -> Profile:
    """The profile in a row with all columns of a version."""
    texts = (str(row[name]) for name in ("reference", "output", "metrics", "reference_reason"))
    return Profile(int(str(row["id"])), *_reference(*texts))


def watched_version(row: Mapping[str, object]) -> WatchedVersion:
    """The version in a row with all its columns."""
    return _watched(row, profile_of(row))


def _watched(row: Mapping[str, object], profile: Profile) -> WatchedVersion:
    first = row["score_reference"]
    return WatchedVersion(
        id=int(str(row["id"])),
        name=str(row["name"]),
        model_id=int(str(row["model_id"])),
        model=str(row["model"]),
        reference=profile.reference,
        layout=profile.layout,
        first_window=None if first is None else score_reference_from_json(json.loads(str(first))),
        first_labels=tuple(json.loads(str(row["first_labels"] or "[]"))),
        rolled_up=bool(row["rolled_up"]),
        minutes_from_us=int(str(row["minutes_from_us"])),
    )
