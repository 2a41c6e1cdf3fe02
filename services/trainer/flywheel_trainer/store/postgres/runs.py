"""`RunStore` on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from flywheel_common.paging import Key, Page, cut, decode_token
from flywheel_common.postgres.idempotency import idempotent
from flywheel_common.postgres.pool import Connection, Pool, connection, transaction
from flywheel_job.outcome import Artifact, MetricPoint, Outcome
from flywheel_trainer.runs.errors import (
    AttemptEnded,
    ExperimentExists,
    ForeignRun,
    RunEnded,
    UnknownExperiment,
    UnknownRun,
)
from flywheel_trainer.runs.filter_terms import Term
from flywheel_trainer.runs.lease import LOST_MESSAGE
from flywheel_trainer.runs.metric_points import LoggedPoints
from flywheel_trainer.runs.run import Experiment, ExperimentName, Run, RunName, RunState, RunUpdate
from flywheel_trainer.runs.search import Order, rank
from flywheel_trainer.store.postgres.run_search import search_clauses

_INSERT_EXPERIMENT = """
INSERT INTO experiment (project, id, description, tags, created_at) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT DO NOTHING
"""
_GET_EXPERIMENT = "SELECT * FROM experiment WHERE project = $1 AND id = $2"
_LIST_EXPERIMENTS = "SELECT * FROM experiment WHERE project = $1 AND id > $2 ORDER BY id LIMIT $3"
_INSERT_RUN = """
INSERT INTO run (id, project, experiment, state, params, tags, artifacts, code_version, environment,
    training_set, job, lease_seconds, heartbeat_at, started_at, parent_run)
VALUES ($1, $2, $3, 'RUNNING', $4, $5, $6, $7, $8, $9, $10, $11, $12, $12, $13)
"""
_SELECT_RUN = """
SELECT r.*, coalesce(
    (SELECT jsonb_object_agg(m.key, m.value::text) FROM run_metric m WHERE m.run_id = r.id), '{}'
) AS metrics
FROM run r
"""
_INSERT_POINTS = """
WITH given AS (
    SELECT * FROM unnest($2::text[], $3::bigint[], $4::float8[], $5::bigint[])
        WITH ORDINALITY AS g(key, step, value, time_us, position)
), first AS (
    SELECT DISTINCT ON (key, step) * FROM given ORDER BY key, step, position
), written AS (
    INSERT INTO metric_point AS p (run_id, key, step, value, time_us, attempt)
    SELECT $1, key, step, value, time_us, $6 FROM first
    ON CONFLICT (run_id, key, step) DO UPDATE
        SET value = excluded.value, time_us = excluded.time_us, attempt = excluded.attempt
        WHERE p.attempt < excluded.attempt
    RETURNING key, step, value
), kept AS (
    SELECT * FROM written
    UNION ALL
    SELECT p.key, p.step, p.value FROM metric_point p JOIN first USING (key, step)
    WHERE p.run_id = $1 AND p.attempt >= $6
), newest AS (
    INSERT INTO run_metric AS m (run_id, key, step, value, attempt)
    SELECT DISTINCT ON (key) $1, key, step, value, $6 FROM written ORDER BY key, step DESC
    ON CONFLICT (run_id, key) DO UPDATE
        SET step = excluded.step, value = excluded.value, attempt = excluded.attempt
        WHERE (m.attempt, m.step) < (excluded.attempt, excluded.step)
)
SELECT (SELECT count(*) FROM written) AS stored, (
    SELECT count(*) FROM given g
    WHERE EXISTS (SELECT 1 FROM kept k WHERE (k.key, k.step) = (g.key, g.step) AND k.value <> g.value)
) AS ignored
"""
_DROP_REPLACED_POINTS = """
DELETE FROM metric_point p WHERE run_id = $1 AND attempt < $2 AND step >= (
    SELECT min(step) FROM metric_point n WHERE n.run_id = $1 AND n.attempt = $2 AND n.key = p.key
)
"""
_HEARTBEAT = (
    "UPDATE run SET heartbeat_at = $3 WHERE id = $1 AND project = $2 AND state = 'RUNNING' RETURNING true"
)
_POINTS = """
SELECT key, step, value, time_us FROM metric_point
WHERE run_id = $1 AND ($2 = '' OR key = $2) AND (key, step) > ($3, $4) ORDER BY key, step LIMIT $5
"""
_UPDATE = """
UPDATE run SET params = $3::jsonb || params, tags = tags || $4::jsonb, artifacts = artifacts || $5::jsonb,
    heartbeat_at = $6, state = coalesce($7, state),
    error_message = CASE WHEN $7 IS NULL THEN error_message ELSE $8 END,
    ended_at = CASE WHEN $7 IS NULL THEN ended_at ELSE $6 END
WHERE id = $1 AND project = $2 AND state = 'RUNNING' RETURNING true
"""
_END_WITH_OUTCOME = """
UPDATE run SET params = params || $2::jsonb, artifacts = $3, code_version = $4, environment = $5, state = $6,
    error_message = $7, ended_at = coalesce(ended_at, $8)
WHERE id = $1 AND state IN ('RUNNING', 'LOST')
"""
_EXPIRE = """
UPDATE run SET state = 'LOST', ended_at = $1, error_message = $3
WHERE state = 'RUNNING' AND greatest(heartbeat_at, $2) + lease_seconds * interval '1 second' < $1
    AND NOT EXISTS (
        SELECT FROM job WHERE job.run_id IN (run.id, run.parent_run) AND job.state IN ('QUEUED', 'RUNNING')
    )
RETURNING 'projects/' || project || '/runs/' || id
"""

_ATTEMPT = """
SELECT a.ended_at IS NULL AS active, a.number, EXISTS (
    SELECT FROM run WHERE run.id = $2 AND run.project = job.project AND job.run_id IN (run.id, run.parent_run)
) AS own
FROM attempt a JOIN job ON job.id = a.job_id WHERE a.engine_id = $1 FOR SHARE OF a
"""


async def insert_run(conn: Connection, run: Run, now: datetime) -> None:
    """Insert a run in the caller's transaction, because a job and its run are created together."""
    await conn.execute(
        _INSERT_RUN,
        run.name.run,
        run.name.project,
        run.experiment,
        dict(run.params),
        dict(run.tags),
        [asdict(a) for a in run.artifacts],
        run.code_version,
        dict(run.environment),
        run.training_set,
        run.job,
        run.lease_seconds,
        now,
        run.parent_run.rpartition("/")[2],
    )


async def end_run_with_outcome(
    conn: Connection, run_id: str, outcome: Outcome, state: RunState, now: datetime, attempt: int
) -> None:
    """Write the outcome of a job's last attempt to its run: missing points, artifacts, provenance and the
    end.

    Points of earlier attempts remain up to the step at which the last attempt began. It works in the caller's
    transaction. Repeating it changes nothing.
    """
    await _insert_points(conn, run_id, outcome.points, attempt)
    await conn.execute(_DROP_REPLACED_POINTS, run_id, attempt)
    await conn.execute(
        _END_WITH_OUTCOME,
        run_id,
        outcome.params,
        [asdict(a) for a in outcome.artifacts],
        outcome.code_version,
        outcome.environment,
        state,
        outcome.error_message,
        now,
    )


class PostgresRuns:
    """`RunStore` on PostgreSQL."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def create_experiment(
        self, experiment: Experiment, request_id: str, body: bytes, now: datetime
    ) -> Experiment:
        key = (experiment.name.project, experiment.name.experiment)
        async with (
            transaction(self._pool) as conn,
            idempotent(conn, "CreateExperiment", request_id, body) as once,
        ):
            if once.replay is None:
                await conn.execute(
                    _INSERT_EXPERIMENT, *key, experiment.description, dict(experiment.tags), now
                )
                once.store(str(experiment.name).encode())
            stored = _experiment(await conn.fetchrow(_GET_EXPERIMENT, *key))
            if (stored.description, stored.tags) != (experiment.description, dict(experiment.tags)):
                raise ExperimentExists.of(experiment.name)
            return stored

    async def list_experiments(self, project: str, size: int, token: str) -> Page[Experiment]:
        after = decode_token(token, query=project) or [""]
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_LIST_EXPERIMENTS, project, after[0], size + 1)
        return cut([_experiment(row) for row in rows], size, lambda e: (e.name.experiment,), query=project)

    async def create_run(self, run: Run, request_id: str, body: bytes, now: datetime) -> Run:
        unknown = UnknownExperiment.of(run.experiment)
        async with (
            transaction(self._pool, translate={"run_experiment": unknown}) as conn,
            idempotent(conn, "CreateRun", request_id, body) as once,
        ):
            if once.replay is not None:
                return await _existing(conn, RunName.parse(once.replay.decode()))
            await insert_run(conn, run, now)
            once.store(str(run.name).encode())
            return await _existing(conn, run.name)

    async def get_run(self, name: RunName) -> Run | None:
        async with connection(self._pool) as conn:
            row = await conn.fetchrow(
                _SELECT_RUN + "WHERE r.id = $1 AND r.project = $2", name.run, name.project
            )
        return None if row is None else _run(row)

    async def list_runs(
        self, project: str, terms: Sequence[Term], order: Order | None, size: int, token: str
    ) -> Page[Run]:
        query = repr((project, terms, order))
        after = decode_token(token, query=query)
        clauses, parameters = search_clauses(project, terms, order, after, size + 1)
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_SELECT_RUN + clauses, *parameters)

        def key(run: Run) -> tuple[Key, ...]:
            if order is None:
                return (run.name.run,)
            return (str(rank(run, order)), run.name.run)

        return cut([_run(row) for row in rows], size, key, query=query)

    async def log(
        self, name: RunName, points: Sequence[MetricPoint], now: datetime, attempt: str = ""
    ) -> LoggedPoints:
        async with transaction(self._pool) as conn:
            number = await check_attempt(conn, attempt, name) if attempt else 0
            if not await conn.fetchval(_HEARTBEAT, name.run, name.project, now):
                raise await _not_running(conn, name)
            return await _insert_points(conn, name.run, points, number)

    async def points(self, name: RunName, key: str, size: int, token: str) -> Page[MetricPoint]:
        query = f"{name}?{key}"
        after = decode_token(token, query=query) or ["", -(2**63)]
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_POINTS, name.run, key, after[0], after[1], size + 1)
        return cut([MetricPoint(*row) for row in rows], size, lambda p: (p.key, p.step), query=query)

    async def update(
        self, name: RunName, update: RunUpdate, now: datetime, request_id: str = "", body: bytes = b""
    ) -> Run:
        async with (
            transaction(self._pool) as conn,
            idempotent(conn, "UpdateRun", request_id, body) as once,
        ):
            if once.replay is not None:
                return await _existing(conn, name)
            done = await conn.fetchval(
                _UPDATE,
                name.run,
                name.project,
                dict(update.params),
                dict(update.tags),
                [asdict(a) for a in update.artifacts],
                now,
                update.state,
                update.error_message,
            )
            if not done:
                raise await _not_running(conn, name)
            once.store(str(name).encode())
            return await _existing(conn, name)

    async def expire(self, now: datetime, not_before: datetime) -> list[str]:
        async with connection(self._pool) as conn:
            return [row[0] for row in await conn.fetch(_EXPIRE, now, not_before, LOST_MESSAGE)]


async def check_attempt(conn: Connection, attempt: str, name: RunName) -> int:
    """The number of the attempt. The lock lets no point of an attempt be stored after its end."""
    row = await conn.fetchrow(_ATTEMPT, attempt, name.run)
    if row is None or not row["active"]:
        raise AttemptEnded.of(attempt)
    if not row["own"]:
        raise ForeignRun.of(attempt, name)
    return int(row["number"])


async def _insert_points(
    conn: Connection, run_id: str, points: Sequence[MetricPoint], attempt: int
) -> LoggedPoints:
    if not points:
        return LoggedPoints(0, 0)
    row = await conn.fetchrow(
        _INSERT_POINTS,
        run_id,
        [p.key for p in points],
        [p.step for p in points],
        [p.value for p in points],
        [p.time_us for p in points],
        attempt,
    )
    return LoggedPoints(row["stored"], row["ignored"])


async def _existing(conn: Connection, name: RunName) -> Run:
    return _run(await conn.fetchrow(_SELECT_RUN + "WHERE r.id = $1", name.run))


async def _not_running(conn: Connection, name: RunName) -> UnknownRun | RunEnded:
    """The error for a run that is not RUNNING."""
    state = await conn.fetchval(
        "SELECT state FROM run WHERE id = $1 AND project = $2", name.run, name.project
    )
    if state is None:
        return UnknownRun.of(name)
    return RunEnded.of(name, RunState(state))


def _experiment(row: Any) -> Experiment:
    return Experiment(
        ExperimentName(row["project"], row["id"]), row["description"], row["tags"], row["created_at"]
    )


def _run(row: Any) -> Run:
    return Run(
        name=RunName(row["project"], row["id"]),
        experiment=row["experiment"],
        state=RunState(row["state"]),
        params=row["params"],
        metrics={key: float(value) for key, value in row["metrics"].items()},
        tags=row["tags"],
        artifacts=tuple(Artifact(**a) for a in row["artifacts"]),
        code_version=row["code_version"],
        environment=row["environment"],
        training_set=row["training_set"],
        job=row["job"],
        lease_seconds=row["lease_seconds"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        error_message=row["error_message"],
        parent_run=str(RunName(row["project"], row["parent_run"])) if row["parent_run"] else "",
    )
