"""`JobStore` on PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from flywheel_common.paging import Page, cut, decode_token
from flywheel_common.postgres.idempotency import idempotent
from flywheel_common.postgres.pool import Connection, Pool, connection, transaction
from flywheel_trainer.encoding.specs import spec_from_json, spec_to_json
from flywheel_trainer.jobs.attempt import Attempt
from flywheel_trainer.jobs.errors import CancelledOnRequest, JobEnded, UnknownJob
from flywheel_trainer.jobs.job import Job, JobName, JobState
from flywheel_trainer.runs.errors import UnknownExperiment
from flywheel_trainer.runs.filter_terms import Term
from flywheel_trainer.runs.run import Run, RunName
from flywheel_trainer.store.postgres.runs import insert_run
from flywheel_trainer.store.postgres.text_conditions import text_conditions

_METHOD = "SubmitJob"
_INSERT = """
INSERT INTO job ( id, project, kind, state, spec, run_id, priority, created_at, experiment, training_set,
details, pipeline_run ) VALUES ($1, $2, $3, 'QUEUED', $4, $5, $6, $7, $8, $9, $10, $11)
"""
_PIPELINE_RUNS = """
SELECT state IN ('QUEUED', 'RUNNING') AND NOT cancel_requested FROM pipeline_run
WHERE 'projects/' || project || '/pipelineRuns/' || id = $1 FOR SHARE
"""
SELECT_JOB = """
SELECT job.*, (
    SELECT jsonb_agg(
        jsonb_build_array(
            a.number, a.engine_id, a.created_at, a.started_at, a.ended_at, a.error_reason, a.error_message
        ) ORDER BY number
    )
    FROM attempt a WHERE a.job_id = job.id
) AS attempts
FROM job
"""
_GET = SELECT_JOB + "WHERE id = $1 AND project = $2"
_LIST = SELECT_JOB + "WHERE project = $1 AND ($2 = '' OR id < $2)"
_NEWEST = " ORDER BY id DESC LIMIT $3"
_COLUMNS = {"state": "state", "experiment": "experiment", "training_set": "training_set"}
_CANCEL = """
UPDATE job SET cancel_requested = true
WHERE id = $1 AND project = $2 AND state IN ('QUEUED', 'RUNNING') RETURNING true
"""
_CANCEL_JOBS_OF = """
UPDATE job SET cancel_requested = true WHERE pipeline_run = $1 AND state IN ('QUEUED', 'RUNNING')
"""


async def cancel_jobs_of(conn: Connection, pipeline_run: str) -> None:
    """Cancel the jobs of a pipeline run in the caller's transaction, which ends the run or cancels it."""
    await conn.execute(_CANCEL_JOBS_OF, pipeline_run)


class PostgresJobs:
    """`JobStore` on PostgreSQL."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def create(
        self, job: Job, details: Mapping[str, Any], request_id: str, body: bytes, now: datetime
    ) -> Job:
        unknown = UnknownExperiment.of(job.spec.experiment)
        async with (
            transaction(self._pool, translate={"run_experiment": unknown}) as conn,
            idempotent(conn, _METHOD, request_id, body) as once,
        ):
            if once.replay is not None:
                return await _existing(conn, JobName.parse(once.replay.decode()))
            if job.pipeline_run and not await conn.fetchval(_PIPELINE_RUNS, job.pipeline_run):
                raise CancelledOnRequest(f"{job.pipeline_run} was cancelled or has ended.")
            await insert_run(
                conn,
                Run(
                    name=job.run,
                    experiment=job.spec.experiment,
                    training_set=job.spec.training_set,
                    job=str(job.name),
                ),
                now,
            )
            await conn.execute(
                _INSERT,
                job.name.job,
                job.name.project,
                job.kind,
                spec_to_json(job.spec, job.name.project),
                job.run.run,
                job.priority,
                now,
                job.spec.experiment,
                job.spec.training_set,
                dict(details),
                job.pipeline_run,
            )
            once.store(str(job.name).encode())
            return await _existing(conn, job.name)

    async def find_by_request(self, request_id: str, body: bytes) -> Job | None:
        """A repeated request needs no other service: its job is found before they are called."""
        if not request_id:
            return None
        try:
            async with transaction(self._pool) as conn, idempotent(conn, _METHOD, request_id, body) as once:
                if once.replay is None:
                    raise _RollBack
                return await _existing(conn, JobName.parse(once.replay.decode()))
        except _RollBack:
            return None

    async def get(self, name: JobName) -> Job | None:
        async with connection(self._pool) as conn:
            row = await conn.fetchrow(_GET, name.job, name.project)
        return None if row is None else job_of(row)

    async def list(self, project: str, terms: Sequence[Term], size: int, token: str) -> Page[Job]:
        query = repr((project, terms))
        after = decode_token(token, query=query) or [""]
        conditions, parameters = text_conditions(terms, _COLUMNS, [project, after[0], size + 1])
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_LIST + conditions + _NEWEST, *parameters)
        return cut([job_of(row) for row in rows], size, lambda j: (j.name.job,), query=query)

    async def request_cancel(self, name: JobName, request_id: str = "", body: bytes = b"") -> Job:
        async with (
            transaction(self._pool) as conn,
            idempotent(conn, "CancelJob", request_id, body) as once,
        ):
            if once.replay is not None:
                return await _existing(conn, name)
            done = await conn.fetchval(_CANCEL, name.job, name.project)
            row = await conn.fetchrow(_GET, name.job, name.project)
            if row is None:
                raise UnknownJob.of(name)
            if not done:
                raise JobEnded.of(name, row["state"])
            once.store(str(name).encode())
            return job_of(row)


class _RollBack(Exception):
    """Rolls back a transaction that has nothing to store."""


async def _existing(conn: Connection, name: JobName) -> Job:
    return job_of(await conn.fetchrow(_GET, name.job, name.project))


def job_of(row: Any) -> Job:
    """The job in a row of SELECT_JOB."""
    return Job(
        name=JobName(row["project"], row["id"]),
        spec=spec_from_json(row["spec"]),
        run=RunName(row["project"], row["run_id"]),
        kind=row["kind"],
        state=JobState(row["state"]),
        progress=row["progress"],
        error_reason=row["error_reason"],
        error_message=row["error_message"],
        priority=row["priority"],
        cancel_requested=row["cancel_requested"],
        attempts=tuple(
            Attempt(number, engine_id, _time(created), _time(started), _time(ended), reason, message)
            for number, engine_id, created, started, ended, reason, message in row["attempts"] or ()
        ),
        pipeline_run=row["pipeline_run"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
