"""Models and versions in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from flywheel_common.postgres.pool import Connection
from flywheel_registry.models.errors import ConcurrentArtifactChange, ConcurrentStageChange
from flywheel_registry.models.model import Model
from flywheel_registry.models.version import FeatureUse, ModelVersion
from flywheel_registry.stages.transitions import Stage
from flywheel_registry.store.postgres import deletion_statements as deletion
from flywheel_registry.store.postgres import rows
from flywheel_registry.store.postgres import statements as sql
from flywheel_registry.store.postgres.contents import PostgresContents
from flywheel_registry.store.postgres.search import PostgresSearch


class PostgresModels(PostgresSearch, PostgresContents):
    """Part of `PostgresRecords`: models and versions. `_conn` is the transaction's connection."""

    _conn: Connection

    async def lock(self, model: str) -> bool:
        return bool(await self._conn.fetchval(sql.LOCK_MODEL, model))

    async def _next_number(self, model: str, kind: str) -> int:
        """Return the next number of `kind` in a model; other transactions that number it wait meanwhile."""
        number: int = await self._conn.fetchval(sql.NEXT_NUMBER[kind], model)
        return number

    async def add_model(self, model: Model) -> bool:
        added = await self._conn.fetchval(
            sql.INSERT_MODEL,
            model.name,
            model.project,
            model.description,
            model.owner,
            rows.dumps(dict(model.tags)),
            rows.policy_to_json(model.gate_policy),
            rows.policy_to_json(model.rollout_policy),
            model.created_at,
        )
        return added is not None

    async def model(self, name: str) -> Model | None:
        row = await self._conn.fetchrow(sql.SELECT_MODEL, name)
        return None if row is None else rows.model(row)

    async def models(self, project: str, after: str, tags: Mapping[str, str], limit: int) -> list[Model]:
        found = await self._conn.fetch(sql.LIST_MODELS, project, after, rows.dumps(dict(tags)), limit)
        return [rows.model(row) for row in found]

    async def change_model(self, model: Model) -> None:
        await self._conn.execute(
            sql.UPDATE_MODEL,
            model.name,
            model.description,
            model.owner,
            rows.dumps(dict(model.tags)),
            rows.policy_to_json(model.gate_policy),
            rows.policy_to_json(model.rollout_policy),
        )

    async def add_version(self, version: ModelVersion) -> ModelVersion:
        v = replace(version, number=await self._next_number(version.model, "version"))
        golden_tensors, golden_data = rows.golden_parts(v.golden_rows)
        await self._conn.execute(
            sql.INSERT_VERSION,
            v.model,
            v.number,
            v.stage.value,
            v.training_run,
            v.framework,
            rows.dumps(dict(v.metrics)),
            v.feature_set,
            v.training_dataset,
            rows.signature_to_json(v.signature),
            golden_tensors,
            golden_data,
            v.golden_rows.tolerance,
            rows.dumps(dict(v.tags)),
            v.description,
            v.parent_version,
            v.cause_alert,
            v.pipeline_run,
            v.registered_at,
            v.registered_by,
            None if v.check_problems is None else rows.dumps(list(v.check_problems)),
        )
        await self._conn.execute(
            sql.INSERT_METRICS, v.model, v.number, list(v.metrics), list(v.metrics.values())
        )
        await self._conn.execute(
            sql.INSERT_ARTIFACTS,
            v.model,
            v.number,
            [a.name for a in v.artifacts],
            list(range(len(v.artifacts))),
            [a.size_bytes for a in v.artifacts],
            [a.sha256 for a in v.artifacts],
        )
        return v

    async def version(self, model: str, number: int) -> ModelVersion | None:
        row = await self._conn.fetchrow(sql.SELECT_VERSION, model, number)
        return None if row is None else rows.version(row)

    async def versions(
        self,
        model: str,
        before: int,
        stage: Stage | None,
        tags: Mapping[str, str],
        limit: int,
        *,
        golden: bool = False,
    ) -> list[ModelVersion]:
        statement = sql.LIST_VERSIONS if golden else sql.LIST_VERSIONS_WITHOUT_GOLDEN_ROWS
        found = await self._conn.fetch(
            statement, model, before, stage.value if stage else "", rows.dumps(dict(tags)), limit
        )
        return [rows.version(row) for row in found]

    async def production_versions(self, models: Sequence[str]) -> dict[str, ModelVersion | None]:
        found = await self._conn.fetch(sql.PRODUCTION_VERSIONS, models)
        return {row["wanted"]: None if row["number"] is None else rows.version(row) for row in found}

    async def feature_uses(self, prefix: str, after: tuple[str, int, str], limit: int) -> list[FeatureUse]:
        found = await self._conn.fetch(sql.LIST_FEATURE_USES, prefix, *after, limit)
        return [FeatureUse(r["model"], r["number"], Stage(r["stage"]), r["feature_set"]) for r in found]

    async def champion(self, model: str) -> ModelVersion | None:
        row = await self._conn.fetchrow(sql.SELECT_CHAMPION, model)
        return None if row is None else rows.version(row)

    async def move_version(self, version: ModelVersion, to_stage: Stage, at: datetime, by: str) -> None:
        moved = await self._conn.fetchval(
            sql.MOVE_VERSION, version.model, version.number, to_stage.value, at, by, version.stage.value
        )
        if not moved:
            raise ConcurrentStageChange(
                f"{version.name} left stage {version.stage} meanwhile: read it again and retry."
            )

    async def mark_stored(self, model: str, version: int, artifact: str, sha256: str) -> None:
        if not await self._conn.fetchval(sql.MARK_STORED, model, version, artifact, sha256):
            raise ConcurrentArtifactChange(
                f"{model}/versions/{version} no longer declares {artifact} with this digest: read it again."
            )

    async def digest_stored(self, sha256: str) -> bool:
        return await self._conn.fetchval(sql.DIGEST_STORED, sha256) is not None

    async def record_check(self, version: ModelVersion, problems: Sequence[str]) -> None:
        await self._conn.execute(sql.RECORD_CHECK, version.model, version.number, rows.dumps(list(problems)))

    async def has_dependents(self, version: ModelVersion) -> bool:
        return bool(await self._conn.fetchval(sql.HAS_DEPENDENTS, version.model, version.number))

    async def delete_version(self, version: ModelVersion, at: datetime) -> None:
        await self._conn.execute(deletion.DELETE_VERSION, version.model, version.number, at)

    async def restore_version(self, model: str, number: int) -> bool:
        return await self._conn.fetchval(deletion.RESTORE_VERSION, model, number) is not None

    async def delete_model(self, name: str, at: datetime) -> None:
        await self._conn.execute(deletion.DELETE_MODEL, name, at)

    async def restore_model(self, name: str) -> bool:
        return await self._conn.fetchval(deletion.RESTORE_MODEL, name) is not None
