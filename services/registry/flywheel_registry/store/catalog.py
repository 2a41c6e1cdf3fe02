"""Models, versions and releases in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from flywheel_common.errors import Aborted
from flywheel_common.postgres.pool import Connection
from flywheel_registry.policy import gate_to_dict, rollout_to_dict
from flywheel_registry.resources import FeatureUse, Model, ModelVersion, Release
from flywheel_registry.stages import Stage
from flywheel_registry.store import rows
from flywheel_registry.store import statements as sql


class Catalog:
    """Part of `Records`; `_conn` is the transaction's connection."""

    _conn: Connection

    async def lock(self, model: str) -> bool:
        return bool(await self._conn.fetchval(sql.LOCK_MODEL, model))

    async def _next(self, model: str, kind: str) -> int:
        number: int = await self._conn.fetchval(sql.NEXT_NUMBER[kind], model)
        return number

    async def add_model(self, model: Model) -> bool:
        added = await self._conn.fetchval(
            sql.INSERT_MODEL, model.name, model.project, model.description, model.owner, rows.dumps(dict(model.tags)),
            rows.dumps(gate_to_dict(model.gate_policy)), rows.dumps(rollout_to_dict(model.rollout_policy)), model.created_at,
        )  # fmt: skip
        return added is not None

    async def model(self, name: str) -> Model | None:
        row = await self._conn.fetchrow(sql.SELECT_MODEL, name)
        return None if row is None else rows.model(row)

    async def models(self, project: str, after: str, tags: Mapping[str, str], limit: int) -> list[Model]:
        return [
            rows.model(row)
            for row in await self._conn.fetch(sql.LIST_MODELS, project, after, rows.dumps(dict(tags)), limit)
        ]

    async def change_model(self, model: Model) -> None:
        await self._conn.execute(
            sql.UPDATE_MODEL, model.name, model.description, model.owner, rows.dumps(dict(model.tags)),
            rows.dumps(gate_to_dict(model.gate_policy)), rows.dumps(rollout_to_dict(model.rollout_policy)),
        )  # fmt: skip

    async def add_version(self, version: ModelVersion) -> ModelVersion:
        v = replace(version, number=await self._next(version.model, "version"))
        golden = v.golden_rows
        await self._conn.execute(
            sql.INSERT_VERSION, v.model, v.number, v.stage.value, v.training_run, v.framework, rows.dumps(dict(v.metrics)),
            v.feature_set, v.training_dataset, rows.dumps([[i.name, i.data_type, list(i.vocabulary)] for i in v.signature]),
            golden.row_count, golden.inputs, golden.scores, golden.tolerance, rows.dumps(dict(v.tags)), v.description,
            v.parent_version, v.cause_alert, v.pipeline_run, v.registered_at, v.registered_by,
        )  # fmt: skip
        await self._conn.execute(
            sql.INSERT_ARTIFACTS, v.model, v.number, [a.name for a in v.artifacts], list(range(len(v.artifacts))),
            [a.size_bytes for a in v.artifacts], [a.sha256 for a in v.artifacts],
        )  # fmt: skip
        return v

    async def version(self, model: str, number: int) -> ModelVersion | None:
        row = await self._conn.fetchrow(sql.SELECT_VERSION, model, number)
        return None if row is None else rows.version(row)

    async def versions(
        self, model: str, before: int, stage: Stage | None, tags: Mapping[str, str], limit: int
    ) -> list[ModelVersion]:
        found = await self._conn.fetch(
            sql.LIST_VERSIONS, model, before, stage.value if stage else "", rows.dumps(dict(tags)), limit
        )
        return [rows.version(row) for row in found]

    async def feature_uses(self, prefix: str, after: tuple[str, int, str], limit: int) -> list[FeatureUse]:
        found = await self._conn.fetch(sql.LIST_FEATURE_USES, prefix, *after, limit)
        return [FeatureUse(r["model"], r["number"], Stage(r["stage"]), r["feature_set"]) for r in found]

    async def champion(self, model: str) -> ModelVersion | None:
        row = await self._conn.fetchrow(sql.SELECT_PRODUCTION, model)
        return None if row is None else rows.version(row)

    async def move_version(self, version: ModelVersion, to_stage: Stage, at: datetime, by: str) -> None:
        moved = await self._conn.fetchval(
            sql.MOVE_VERSION, version.model, version.number, to_stage.value, at, by, version.stage.value
        )
        if not moved:
            raise Aborted(
                f"{version.name} left stage {version.stage} meanwhile: read it again and retry.",
                reason="STAGE_CHANGED",
            )

    async def mark_stored(self, model: str, version: int, artifact: str, sha256: str) -> None:
        if not await self._conn.fetchval(sql.MARK_STORED, model, version, artifact, sha256):
            raise Aborted(
                f"{artifact} of {model}/versions/{version} is no longer declared so.",
                reason="ARTIFACT_CHANGED",
            )

    async def digest_stored(self, sha256: str) -> bool:
        return await self._conn.fetchval(sql.DIGEST_STORED, sha256) is not None

    async def add_release(self, release: Release) -> Release:
        r = replace(release, number=await self._next(release.model, "release"))
        await self._conn.execute(
            sql.INSERT_RELEASE,
            r.model,
            r.number,
            r.version,
            r.feature_set,
            rows.release_body(r),
            r.created_at,
            r.created_by,
        )
        return r

    async def release(self, model: str, number: int) -> Release | None:
        row = await self._conn.fetchrow(sql.SELECT_RELEASE, model, number)
        return None if row is None else rows.release(row)

    async def releases(self, model: str, before: int, limit: int) -> list[Release]:
        return [rows.release(row) for row in await self._conn.fetch(sql.LIST_RELEASES, model, before, limit)]

    async def newest_release_of(self, model: str, version: int) -> Release | None:
        row = await self._conn.fetchrow(sql.NEWEST_RELEASE_OF, model, version)
        return None if row is None else rows.release(row)
