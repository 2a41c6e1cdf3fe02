"""Jobs in PostgreSQL (port: jobs.runner.JobStore)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from flywheel_common.postgres.errors import RequestIdReused
from flywheel_common.postgres.pool import Pool, connection, transaction
from flywheel_feature.jobs.errors import JobLost
from flywheel_feature.jobs.model import Job, JobState, Progress
from flywheel_feature.jobs.ports import MAX_ATTEMPTS

_INSERT = """
INSERT INTO job (project, id, kind, request, request_id, request_hash, created_at, training_set)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (project, kind, request_id) WHERE request_id <> '' DO NOTHING
RETURNING *
"""
_BY_REQUEST = "SELECT * FROM job WHERE project = $1 AND kind = $2 AND request_id = $3"
_CLAIM = """
WITH lost AS (
    UPDATE job SET state = 'LOST', ended_at = now(), owner = NULL, error_reason = $5,
        error_message = 'Every process that ran the job died: read their logs and submit it again.'
    WHERE state = 'RUNNING' AND lease_until < now() AND attempt >= $4)
UPDATE job
SET state = 'RUNNING', owner = $1, lease_until = now() + $3 * interval '1 second', attempt = attempt + 1
WHERE (project, id) = (
    SELECT project, id FROM job
    WHERE kind = ANY($2) AND due_at <= now()
      AND (state = 'QUEUED' OR (state = 'RUNNING' AND lease_until < now() AND attempt < $4))
    ORDER BY created_at LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING *
"""
"""One statement, as an idle service executes it every second."""
_HEARTBEAT = """
UPDATE job SET lease_until = now() + $4 * interval '1 second', done = $5, total = $6, unit = $7, message = $8
WHERE project = $1 AND id = $2 AND owner = $3 AND state = 'RUNNING' RETURNING cancel_requested
"""
_CHECKPOINT = "UPDATE job SET checkpoint = $4 WHERE project = $1 AND id = $2 AND owner = $3"
_FORGET = "UPDATE job SET request = '' WHERE project = $1 AND id = $2 AND owner = $3"
_FINISH = """
UPDATE job SET state = $4, done = $5, total = $6, unit = $7, message = $8, ended_at = $9, error_reason = $10,
    error_message = $11, result = $12::jsonb, owner = NULL, lease_until = NULL
WHERE project = $1 AND id = $2 AND owner = $3 AND state = 'RUNNING'
"""
_REQUEUE = """
UPDATE job SET state = 'QUEUED', owner = NULL, lease_until = NULL, due_at = now() + $4 * interval '1 second'
WHERE project = $1 AND id = $2 AND owner = $3 AND state = 'RUNNING'
"""
_GET = "SELECT * FROM job WHERE project = $1 AND id = $2"
_LIST = """
SELECT * FROM job
WHERE project = $1 AND ($2 = '' OR kind = $2) AND ($3 = '' OR state = $3) AND ($4 = '' OR id < $4)
ORDER BY id DESC LIMIT $5
"""
_ENDED = "SELECT * FROM job WHERE kind = $1 AND ended_at >= $2 ORDER BY ended_at, id"
_CANCEL = """
UPDATE job SET cancel_requested = true, state = CASE WHEN state = 'QUEUED' THEN 'CANCELLED' ELSE state END,
    ended_at = CASE WHEN state = 'QUEUED' THEN now() ELSE ended_at END
WHERE project = $1 AND id = $2 AND state IN ('QUEUED', 'RUNNING') RETURNING *
"""


class PostgresJobs:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def create(self, job: Job, request_id: str, request_hash: bytes) -> Job:
        async with transaction(self._pool) as conn:
            row = await conn.fetchrow(
                _INSERT,
                job.project,
                job.id,
                job.kind,
                job.request,
                request_id,
                request_hash,
                job.created_at,
                job.training_set,
            )
            if row is None:
                row = await conn.fetchrow(_BY_REQUEST, job.project, job.kind, request_id)
                return _same(row, request_id, request_hash)
        return _job(row)

    async def repeated(self, project: str, kind: str, request_id: str, request_hash: bytes) -> Job | None:
        if not request_id:
            return None
        async with connection(self._pool) as conn:
            row = await conn.fetchrow(_BY_REQUEST, project, kind, request_id)
        return None if row is None else _same(row, request_id, request_hash)

    async def claim(self, owner: str, kinds: Sequence[str], lease_seconds: float) -> Job | None:
        async with connection(self._pool) as conn:
            row = await conn.fetchrow(_CLAIM, owner, list(kinds), lease_seconds, MAX_ATTEMPTS, JobLost.reason)
        return None if row is None else _job(row)

    async def heartbeat(self, job: Job, owner: str, progress: Progress, lease_seconds: float) -> bool | None:
        async with connection(self._pool) as conn:
            answer: bool | None = await conn.fetchval(
                _HEARTBEAT,
                job.project,
                job.id,
                owner,
                lease_seconds,
                progress.done,
                progress.total,
                progress.unit,
                progress.message,
            )
        return answer

    async def save_checkpoint(self, job: Job, owner: str, checkpoint: bytes) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(_CHECKPOINT, job.project, job.id, owner, checkpoint)

    async def forget_request(self, job: Job, owner: str) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(_FORGET, job.project, job.id, owner)

    async def finish(self, job: Job, owner: str) -> None:
        p = job.progress
        async with connection(self._pool) as conn:
            progress = p.done, p.total, p.unit, p.message
            end = job.ended_at, job.error_reason, job.error_message, json.dumps(dict(job.result))
            await conn.execute(_FINISH, job.project, job.id, owner, str(job.state), *progress, *end)

    async def requeue(self, job: Job, owner: str, delay_seconds: float) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(_REQUEUE, job.project, job.id, owner, delay_seconds)

    async def get(self, project: str, job_id: str) -> Job | None:
        async with connection(self._pool) as conn:
            row = await conn.fetchrow(_GET, project, job_id)
        return None if row is None else _job(row)

    async def list(self, project: str, *, kind: str, state: str, before: str, limit: int) -> list[Job]:
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_LIST, project, kind, state, before, limit)
        return [_job(row) for row in rows]

    async def ended_since(self, kind: str, since: datetime) -> Sequence[Job]:
        async with connection(self._pool) as conn:
            return [_job(row) for row in await conn.fetch(_ENDED, kind, since)]

    async def request_cancel(self, project: str, job_id: str) -> Job | None:
        async with connection(self._pool) as conn:
            row = await conn.fetchrow(_CANCEL, project, job_id) or await conn.fetchrow(_GET, project, job_id)
        return None if row is None else _job(row)


def _same(row: Any, request_id: str, request_hash: bytes) -> Job:
    """The job of a request_id. Raises InvalidArgument REQUEST_ID_REUSED when its request was another one."""
    if bytes(row["request_hash"]) != request_hash:
        raise RequestIdReused(
            f"request_id {request_id!r} was used for another {row['kind']} request: use a new id.",
            request_id=request_id,
        )
    return _job(row)


def _job(row: Any) -> Job:
    return Job(
        project=row["project"],
        id=row["id"],
        kind=row["kind"],
        request=bytes(row["request"]),
        created_at=row["created_at"],
        state=JobState(row["state"]),
        progress=Progress(row["done"], row["total"], row["unit"], row["message"]),
        ended_at=row["ended_at"],
        error_reason=row["error_reason"],
        error_message=row["error_message"],
        training_set=row["training_set"],
        result=json.loads(row["result"]),
        checkpoint=bytes(row["checkpoint"]),
        attempt=row["attempt"],
        cancel_requested=row["cancel_requested"],
    )
