"""`Supervision` on PostgreSQL: every write is in one transaction with the check of the fencing token."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any

from flywheel_common.granted.access import Access
from flywheel_common.postgres.lease import fence
from flywheel_common.postgres.pool import Connection, Pool, connection, transaction
from flywheel_job.outcome import Outcome
from flywheel_trainer.jobs.attempt import Attempt, Watch, engine_id
from flywheel_trainer.jobs.job import ENDED, JobName, JobState
from flywheel_trainer.jobs.ports import OF_TRIALS, ActiveJob
from flywheel_trainer.runs.lease import JOB_ENDED_FIRST
from flywheel_trainer.runs.run import RunName, RunState
from flywheel_trainer.store.postgres.jobs import SELECT_JOB, job_of
from flywheel_trainer.store.postgres.runs import end_run_with_outcome

LEASE = "job-supervisor"
"""Name of the lease under which one replica supervises."""

_ACTIVE = SELECT_JOB + "WHERE state IN ('QUEUED', 'RUNNING') ORDER BY priority DESC, created_at"
_WATCHES = """
SELECT job_id, mark, idle_seconds, checked_at, stopping_reason FROM attempt WHERE ended_at IS NULL
"""
_LOCK = "SELECT true FROM job WHERE id = $1 AND project = $2 AND state IN ('QUEUED', 'RUNNING') FOR UPDATE"
_ATTEMPTS = "SELECT * FROM attempt WHERE job_id = $1 ORDER BY number DESC LIMIT 1"
_BEGIN = """
INSERT INTO attempt (job_id, number, engine_id, token, created_at) VALUES ($1, $2, $3, $4, $5)
"""
_GRANT = "UPDATE attempt SET access = $3 WHERE job_id = $1 AND number = $2 AND ended_at IS NULL"
_ATTEMPT_STARTED = """
UPDATE attempt SET started_at = coalesce(started_at, $3), checked_at = coalesce(checked_at, $3)
WHERE job_id = $1 AND number = $2 AND ended_at IS NULL
"""
_JOB_STARTED = """
UPDATE job SET state = 'RUNNING', started_at = coalesce(started_at, $2), progress = progress - 'message'
WHERE id = $1 AND state = 'QUEUED'
"""
_WATCH = """
UPDATE attempt SET mark = $3, idle_seconds = $4, checked_at = $5, stopping_reason = $6
WHERE job_id = $1 AND number = $2 AND ended_at IS NULL
"""
_PROGRESS = "UPDATE job SET progress = $2 WHERE id = $1 AND state = 'RUNNING' AND progress <> $2::jsonb"
_WAITING = """
UPDATE job SET progress = progress || jsonb_build_object('message', $2::text)
WHERE id = $1 AND state IN ('QUEUED', 'RUNNING')
"""
_END_ATTEMPT = """
UPDATE attempt SET ended_at = $3, error_reason = $4, error_message = $5
WHERE job_id = $1 AND number = coalesce($2, number) AND ended_at IS NULL RETURNING number
"""
_QUEUE_AGAIN = """
UPDATE job SET state = 'QUEUED', progress = progress || jsonb_build_object('message', $2::text)
WHERE id = $1 AND state IN ('QUEUED', 'RUNNING')
"""
_END = """
UPDATE job SET state = $2, error_reason = $3, error_message = $4, ended_at = $5
WHERE id = $1 AND state IN ('QUEUED', 'RUNNING') RETURNING run_id
"""
_END_TRIALS = """
UPDATE trial SET state = 'CANCELLED', ended_at = $2 WHERE job_id = $1 AND state = 'RUNNING'
"""
_END_TRIAL_RUNS = """
UPDATE run SET state = 'CANCELLED', error_message = $2, ended_at = $3
WHERE parent_run = $1 AND state = 'RUNNING'
"""
_STEPS = """
SELECT key, step FROM run_metric WHERE run_id = $1 AND key NOT LIKE 'system/%'
UNION ALL
SELECT $2, sum(m.step + 1)::bigint FROM run r JOIN run_metric m ON m.run_id = r.id
WHERE r.parent_run = $1 AND r.state = 'RUNNING' AND m.key NOT LIKE 'system/%' HAVING count(*) > 0
"""


class PostgresSupervision:
    """`Supervision` on PostgreSQL under one fencing token of LEASE."""

    def __init__(self, pool: Pool, token: int) -> None:
        self._pool, self._token = pool, token

    @asynccontextmanager
    async def _fenced(self) -> AsyncIterator[Connection]:
        async with transaction(self._pool) as conn:
            await fence(conn, LEASE, self._token)
            yield conn

    async def active(self) -> Sequence[ActiveJob]:
        async with transaction(self._pool, isolation="repeatable_read", readonly=True) as conn:
            rows = await conn.fetch(_ACTIVE)
            watches = {row["job_id"]: row for row in await conn.fetch(_WATCHES)}
        found = []
        for row in rows:
            job, watch = job_of(row), watches.get(row["id"])
            if watch is None:
                found.append(ActiveJob(job, row["details"]))
                continue
            seen = Watch(watch["mark"], watch["idle_seconds"], watch["checked_at"], watch["stopping_reason"])
            found.append(ActiveJob(job, row["details"], job.attempts[-1], seen))
        return found

    async def begin_attempt(self, name: JobName, now: datetime) -> Attempt | None:
        async with self._fenced() as conn:
            if not await conn.fetchval(_LOCK, name.job, name.project):
                return None
            last = await conn.fetchrow(_ATTEMPTS, name.job)
            if last is not None and last["ended_at"] is None:
                return Attempt(last["number"], last["engine_id"], last["created_at"], last["started_at"])
            number = 1 if last is None else last["number"] + 1
            attempt = Attempt(number, engine_id(name.job, number), now)
            await conn.execute(_BEGIN, name.job, number, attempt.engine_id, self._token, now)
            return attempt

    async def grant(self, name: JobName, number: int, access: Access) -> None:
        async with self._fenced() as conn:
            await conn.execute(_GRANT, name.job, number, asdict(access))

    async def mark_running(self, name: JobName, number: int, now: datetime) -> None:
        async with self._fenced() as conn:
            await conn.execute(_ATTEMPT_STARTED, name.job, number, now)
            await conn.execute(_JOB_STARTED, name.job, now)

    async def observe(self, name: JobName, number: int, watch: Watch, progress: Mapping[str, Any]) -> None:
        async with self._fenced() as conn:
            await conn.execute(
                _WATCH,
                name.job,
                number,
                watch.mark,
                watch.idle_seconds,
                watch.checked_at,
                watch.stopping_reason,
            )
            await conn.execute(_PROGRESS, name.job, dict(progress))

    async def set_waiting(self, name: JobName, message: str) -> None:
        async with self._fenced() as conn:
            await conn.execute(_WAITING, name.job, message)

    async def end_attempt(self, name: JobName, number: int, reason: str, message: str, now: datetime) -> None:
        async with self._fenced() as conn:
            if await conn.fetchval(_END_ATTEMPT, name.job, number, now, reason, message):
                await conn.execute(_QUEUE_AGAIN, name.job, f"attempt {number} was lost: {reason}")

    async def end(self, name: JobName, state: JobState, outcome: Outcome, now: datetime) -> bool:
        assert state in ENDED
        async with self._fenced() as conn:
            run_id = await conn.fetchval(
                _END, name.job, state, outcome.error_reason, outcome.error_message, now
            )
            if run_id is None:
                return False
            number = await conn.fetchval(
                _END_ATTEMPT, name.job, None, now, outcome.error_reason, outcome.error_message
            )
            await end_run_with_outcome(conn, run_id, outcome, RunState(state), now, number or 0)
            await conn.execute(_END_TRIALS, name.job, now)
            await conn.execute(_END_TRIAL_RUNS, run_id, JOB_ENDED_FIRST, now)
            return True

    async def last_steps(self, run: RunName) -> Mapping[str, int]:
        async with connection(self._pool) as conn:
            return {row["key"]: row["step"] for row in await conn.fetch(_STEPS, run.run, OF_TRIALS)}
