"""`RunEdits` on PostgreSQL."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

from flywheel_common.postgres.idempotency import idempotent
from flywheel_common.postgres.pool import Connection, Pool, connection, transaction
from flywheel_job.outcome import Artifact
from flywheel_trainer.runs.errors import RunActive, RunDeleted, RunOfJob, UnknownRun
from flywheel_trainer.runs.ports import Remove
from flywheel_trainer.runs.run import Run, RunEdit, RunName
from flywheel_trainer.store.postgres.run_points import summarize_metrics
from flywheel_trainer.store.postgres.runs import SELECT_RUN, existing_run, run_of

_LOCK = "SELECT state, job, deleted_at FROM run WHERE id = $1 AND project = $2 FOR UPDATE"
_EDIT = """
UPDATE run SET display_name = coalesce($2, display_name), notes = coalesce($3, notes),
    tags = (tags || $4::jsonb) - $5::text[]
WHERE id = $1
"""
_CONTINUE = """
UPDATE run SET state = 'RUNNING', ended_at = NULL, error_message = '', heartbeat_at = $2,
    generation = generation + 1
WHERE id = $1
"""
_REWIND = "DELETE FROM metric_point WHERE run_id = $1 AND step > $2 AND key NOT LIKE 'system/%'"
_ADD_ARTIFACT = """
UPDATE run SET artifacts = coalesce(
        (SELECT jsonb_agg(a ORDER BY n) FROM jsonb_array_elements(artifacts) WITH ORDINALITY AS e(a, n)
         WHERE a ->> 'name' <> $2), '[]'
    ) || $3::jsonb,
    heartbeat_at = CASE WHEN state = 'RUNNING' THEN $4 ELSE heartbeat_at END
WHERE id = $1
"""
_OF_NO_JOB = """
NOT EXISTS (SELECT FROM job WHERE job.run_id = r.id)
    AND NOT EXISTS (SELECT FROM trial WHERE trial.run_id = r.id)
"""
_DELETED = f"""
{SELECT_RUN} WHERE r.project = $1 AND r.deleted_at < $2 AND {_OF_NO_JOB} ORDER BY r.deleted_at, r.id LIMIT $3
"""
_LOCK_DELETED = f"""
SELECT artifacts FROM run r WHERE id = $1 AND project = $2 AND deleted_at < $3 AND {_OF_NO_JOB} FOR UPDATE
"""
_OTHERS = """
SELECT digest FROM unnest($2::text[]) digest WHERE NOT EXISTS (
    SELECT FROM run r
    WHERE r.id <> $1 AND r.artifacts @> jsonb_build_array(jsonb_build_object('sha256', digest))
)
"""
"""Digests that no other run has."""


class PostgresRunEdits:
    """`RunEdits` on PostgreSQL."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def edit(self, name: RunName, edit: RunEdit, request_id: str, body: bytes) -> Run:
        async with (
            transaction(self._pool) as conn,
            idempotent(conn, "EditRun", request_id, body) as once,
        ):
            if once.replay is None:
                await _lock(conn, name)
                removed = [tag for tag in edit.removed_tags if tag not in edit.tags]
                await conn.execute(_EDIT, name.run, edit.display_name, edit.notes, dict(edit.tags), removed)
                once.store(str(name).encode())
            return await existing_run(conn, name)

    async def set_deleted(self, name: RunName, at: datetime | None) -> Run:
        async with transaction(self._pool) as conn:
            state, _, deleted = await _lock(conn, name)
            if at is not None and state == "RUNNING":
                raise RunActive.of(name)
            if at is None or deleted is None:
                await conn.execute("UPDATE run SET deleted_at = $2 WHERE id = $1", name.run, at)
            return await existing_run(conn, name)

    async def continue_run(
        self, name: RunName, rewind_to_step: int | None, now: datetime, request_id: str, body: bytes
    ) -> Run:
        async with (
            transaction(self._pool) as conn,
            idempotent(conn, "ContinueRun", request_id, body) as once,
        ):
            if once.replay is None:
                _, job, deleted = await _lock(conn, name)
                if deleted is not None:
                    raise RunDeleted.of(name)
                if job:
                    raise RunOfJob.of(name)
                await conn.execute(_CONTINUE, name.run, now)
                if rewind_to_step is not None:
                    await conn.execute(_REWIND, name.run, rewind_to_step)
                    await summarize_metrics(conn, name.run)
                once.store(str(name).encode())
            return await existing_run(conn, name)

    async def deleted_before(self, project: str, before: datetime, limit: int) -> list[Run]:
        async with connection(self._pool) as conn:
            return [run_of(row) for row in await conn.fetch(_DELETED, project, before, limit)]

    async def purge(self, name: RunName, before: datetime, remove: Remove) -> bool:
        async with transaction(self._pool) as conn:
            row = await conn.fetchrow(_LOCK_DELETED, name.run, name.project, before)
            if row is None:
                return False
            artifacts = {one["sha256"]: Artifact(**one) for one in row["artifacts"]}
            own = await conn.fetch(_OTHERS, name.run, list(artifacts))
            await remove([artifacts[one["digest"]] for one in own])
            await conn.execute("DELETE FROM run WHERE id = $1", name.run)
            return True

    async def add_artifact(self, name: RunName, artifact: Artifact, now: datetime) -> None:
        async with transaction(self._pool) as conn:
            _, _, deleted = await _lock(conn, name)
            if deleted is not None:
                raise RunDeleted.of(name)
            await conn.execute(_ADD_ARTIFACT, name.run, artifact.name, [asdict(artifact)], now)


async def _lock(conn: Connection, name: RunName) -> tuple[str, str, datetime | None]:
    """The state, job and time of deletion of a run, which stays as it is until the transaction ends."""
    row = await conn.fetchrow(_LOCK, name.run, name.project)
    if row is None:
        raise UnknownRun.of(name)
    return row["state"], row["job"], row["deleted_at"]
