"""`CheckpointStore` on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from flywheel_common.paging import Page, cut, decode_token
from flywheel_common.postgres.pool import Pool, connection, transaction
from flywheel_trainer.checkpoints.checkpoint import Checkpoint
from flywheel_trainer.jobs.job import JobName
from flywheel_trainer.runs.run import RunName
from flywheel_trainer.store.postgres.runs import check_attempt

_RUN = "SELECT run_id FROM job WHERE id = $1 AND project = $2"
_REMOVE = "DELETE FROM checkpoint WHERE job_id = $1 AND folder = $2 AND name <> ALL($3::text[])"
_INSERT = """
INSERT INTO checkpoint (job_id, folder, name, step, attempt, world_size, size_bytes, created_at, metrics)
VALUES ($1, $2, $3, $4, $5, $6, $7, least($8::timestamptz, $9::timestamptz), $10) ON CONFLICT DO NOTHING
"""
_LIST = """
SELECT folder, name, step, attempt, world_size, size_bytes, created_at, metrics FROM checkpoint
WHERE job_id = $1 AND (folder, name) > ($2, $3) ORDER BY folder, name LIMIT $4
"""


class PostgresCheckpoints:
    """`CheckpointStore` on PostgreSQL."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def replace(
        self, job: JobName, folder: str, checkpoints: Sequence[Checkpoint], attempt: str, now: datetime
    ) -> None:
        async with transaction(self._pool) as conn:
            run = await conn.fetchval(_RUN, job.job, job.project)
            # It locks the attempt, so that nothing of it is stored after its end.
            await check_attempt(conn, attempt, RunName(job.project, run))
            await conn.execute(_REMOVE, job.job, folder, [one.name for one in checkpoints])
            for one in checkpoints:
                await conn.execute(
                    _INSERT,
                    job.job,
                    folder,
                    one.name,
                    one.step,
                    one.attempt,
                    one.world_size,
                    one.size_bytes,
                    one.created_at,
                    now,
                    dict(one.metrics),
                )

    async def list(self, job: JobName, size: int, token: str) -> Page[Checkpoint]:
        after = decode_token(token, query=str(job)) or ["", ""]
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_LIST, job.job, *after, size + 1)
        found = [Checkpoint(**row) for row in rows]
        return cut(found, size, lambda one: (one.folder, one.name), query=str(job))
