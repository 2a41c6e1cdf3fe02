"""`JobStore` on PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from flywheel_common.paging import Page, cut, decode_token
from flywheel_common.postgres.idempotency import idempotent
from flywheel_common.postgres.pool import Connection, Pool, connection, transaction
from flywheel_job.outcome import Outcome
from flywheel_trainer.jobs.errors import JobEnded, UnknownJob
from flywheel_trainer.jobs.job import ENDED, TRAIN, Job, JobName, JobState
from flywheel_trainer.jobs.train_spec import TrainSpec
from flywheel_trainer.runs.errors import UnknownExperiment
from flywheel_trainer.runs.filter_terms import Term
from flywheel_trainer.runs.run import Run, RunName, RunState
from flywheel_trainer.store.postgres.runs import end_run_with_outcome, insert_run
from flywheel_trainer.store.postgres.text_conditions import text_conditions

_METHOD = "SubmitJob"
_INSERT = """
INSERT INTO job (id, project, kind, state, spec, run_id, priority, created_at)
VALUES ($1, $2, $3, 'QUEUED', $4, $5, $6, $7)
"""
_GET = "SELECT * FROM job WHERE id = $1 AND project = $2"
_LIST = "SELECT * FROM job WHERE project = $1 AND ($2 = '' OR id < $2)"
_NEWEST = " ORDER BY id DESC LIMIT $3"
_COLUMNS = {
    "state": "state",
    "experiment": "spec ->> 'experiment'",
    "training_set": "spec ->> 'training_set'",
}
_CANCEL = """
UPDATE job SET cancel_requested = true
WHERE id = $1 AND project = $2 AND state IN ('QUEUED', 'RUNNING') RETURNING *
"""
_ACTIVE = "SELECT * FROM job WHERE state IN ('QUEUED', 'RUNNING') ORDER BY priority DESC, created_at"
_STARTED = """
UPDATE job SET state = 'RUNNING', started_at = coalesce(started_at, $2) WHERE id = $1 AND state = 'QUEUED'
"""
_PROGRESS = "UPDATE job SET progress = $2 WHERE id = $1 AND state = 'RUNNING' AND progress <> $2::jsonb"
_WAITING = """
UPDATE job SET progress = progress || jsonb_build_object('message', $2::text)
WHERE id = $1 AND state IN ('QUEUED', 'RUNNING')
"""
_HEARTBEAT = """
UPDATE run SET heartbeat_at = $2 FROM job WHERE job.id = $1 AND run.id = job.run_id AND run.state = 'RUNNING'
"""
_END = """
UPDATE job SET state = $2, error_reason = $3, error_message = $4, ended_at = $5
WHERE id = $1 AND state IN ('QUEUED', 'RUNNING') RETURNING run_id
"""
_EPOCH = "SELECT step FROM run_metric WHERE run_id = $1 AND key = 'train_loss'"


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
            spec = asdict(job.spec) | {"details": dict(details)}
            await conn.execute(
                _INSERT, job.name.job, job.name.project, job.kind, spec, job.run.run, job.priority, now
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
        return None if row is None else _job(row)

    async def list(self, project: str, terms: Sequence[Term], size: int, token: str) -> Page[Job]:
        query = repr((project, terms))
        after = decode_token(token, query=query) or [""]
        conditions, parameters = text_conditions(terms, _COLUMNS, [project, after[0], size + 1])
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_LIST + conditions + _NEWEST, *parameters)
        return cut([_job(row) for row in rows], size, lambda j: (j.name.job,), query=query)

    async def request_cancel(self, name: JobName, request_id: str = "", body: bytes = b"") -> Job:
        async with (
            transaction(self._pool) as conn,
            idempotent(conn, "CancelJob", request_id, body) as once,
        ):
            if once.replay is not None:
                return await _existing(conn, name)
            done = await conn.fetchrow(_CANCEL, name.job, name.project)
            row = done or await conn.fetchrow(_GET, name.job, name.project)
            if row is None:
                raise UnknownJob.of(name)
            if done is None:
                raise JobEnded.of(name, row["state"])
            once.store(str(name).encode())
            return _job(row)

    async def active(self) -> Sequence[tuple[Job, Mapping[str, Any]]]:
        async with connection(self._pool) as conn:
            return [(_job(row), row["spec"]["details"]) for row in await conn.fetch(_ACTIVE)]

    async def mark_started(self, name: JobName, now: datetime) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(_STARTED, name.job, now)

    async def set_waiting(self, name: JobName, message: str) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(_WAITING, name.job, message)

    async def heartbeat(self, name: JobName, progress: Mapping[str, Any], now: datetime) -> None:
        async with transaction(self._pool) as conn:
            await conn.execute(_PROGRESS, name.job, dict(progress))
            await conn.execute(_HEARTBEAT, name.job, now)

    async def epochs_done(self, run: RunName) -> int:
        async with connection(self._pool) as conn:
            return int(await conn.fetchval(_EPOCH, run.run) or 0)

    async def end(self, name: JobName, state: JobState, outcome: Outcome, now: datetime) -> bool:
        assert state in ENDED
        async with transaction(self._pool) as conn:
            run_id = await conn.fetchval(
                _END, name.job, state, outcome.error_reason, outcome.error_message, now
            )
            if run_id is None:
                return False
            await end_run_with_outcome(conn, run_id, outcome, RunState(state), now)
            return True


class _RollBack(Exception):
    """Rolls back a transaction that has nothing to store."""


async def _existing(conn: Connection, name: JobName) -> Job:
    return _job(await conn.fetchrow(_GET, name.job, name.project))


def _job(row: Any) -> Job:
    spec = {key: value for key, value in row["spec"].items() if key != "details"}
    assert row["kind"] == TRAIN
    return Job(
        name=JobName(row["project"], row["id"]),
        spec=TrainSpec.from_json(spec),
        run=RunName(row["project"], row["run_id"]),
        kind=row["kind"],
        state=JobState(row["state"]),
        progress=row["progress"],
        error_reason=row["error_reason"],
        error_message=row["error_message"],
        priority=row["priority"],
        cancel_requested=row["cancel_requested"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
    )
