"""`RunStore` on PostgreSQL."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from flywheel_common.errors import FlywheelError
from flywheel_common.granted.errors import AttemptEnded
from flywheel_common.paging import Page, cut, decode_token
from flywheel_common.postgres.idempotency import idempotent
from flywheel_common.postgres.pool import Connection, Pool, connection, transaction
from flywheel_job.outcome import Artifact, MetricPoint, Outcome
from flywheel_trainer.runs.errors import (
    ExperimentExists,
    ForeignRun,
    RunContinued,
    RunDeleted,
    RunEnded,
    RunExists,
    UnknownExperiment,
    UnknownRun,
)
from flywheel_trainer.runs.filter_expression import Condition
from flywheel_trainer.runs.filter_terms import number_of
from flywheel_trainer.runs.lease import LOST_MESSAGE
from flywheel_trainer.runs.metric_points import LoggedPoints
from flywheel_trainer.runs.run import (
    Experiment,
    ExperimentName,
    MetricSummary,
    Run,
    RunName,
    RunState,
    RunUpdate,
)
from flywheel_trainer.runs.search import NEWEST_FIRST, Order
from flywheel_trainer.store.postgres.run_points import (
    drop_replaced_points,
    insert_points,
    points_of,
    summarize_metrics,
)
from flywheel_trainer.store.postgres.run_search import RunSearch

_INSERT_EXPERIMENT = """
INSERT INTO experiment (project, id, description, tags, created_at) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT DO NOTHING
"""
_GET_EXPERIMENT = "SELECT * FROM experiment WHERE project = $1 AND id = $2"
_LIST_EXPERIMENTS = "SELECT * FROM experiment WHERE project = $1 AND id > $2 ORDER BY id LIMIT $3"
_INSERT_RUN = """
INSERT INTO run (id, project, experiment, state, params, tags, artifacts, code_version, environment,
    training_set, job, lease_seconds, heartbeat_at, started_at, display_name, notes, parent_run)
VALUES ($1, $2, $3, 'RUNNING', $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
"""
RUN_COLUMNS = """
SELECT r.*, coalesce((
    SELECT jsonb_object_agg(
        m.key, jsonb_build_array(m.value::text, m.min_value::text, m.max_value::text, m.step)
    )
    FROM run_metric m WHERE m.run_id = r.id
), '{}') AS metrics
"""
"""Columns of a run `r`, for `run_of`."""
SELECT_RUN = RUN_COLUMNS + "FROM run r "
_REPORTING = "(state = 'RUNNING' OR state = 'LOST' AND job = '') AND deleted_at IS NULL"
"""A run whose process may report: a LOST one without a job is RUNNING again."""
_EXISTS = "SELECT true FROM run WHERE id = $1 AND project = $2"
_HEARTBEAT = f"""
UPDATE run SET heartbeat_at = $3, state = 'RUNNING', ended_at = NULL, error_message = ''
WHERE id = $1 AND project = $2 AND {_REPORTING} AND ($4 = 0 OR generation = $4) RETURNING true
"""
_UPDATE = f"""
UPDATE run SET params = $3::jsonb || params, tags = tags || $4::jsonb, artifacts = artifacts || $5::jsonb,
    heartbeat_at = $6::timestamptz, state = coalesce($7, 'RUNNING'),
    error_message = CASE WHEN $7 IS NULL THEN '' ELSE $8 END,
    ended_at = CASE WHEN $7 IS NULL THEN NULL
        ELSE greatest(least($9::timestamptz, $6::timestamptz), started_at) END
WHERE id = $1 AND project = $2 AND {_REPORTING} AND ($10 = 0 OR generation = $10) RETURNING true
"""
_INSERT_NUMBERS = """
INSERT INTO run_param_number (run_id, key, value)
SELECT $1, key, value FROM unnest($2::text[], $3::float8[]) AS n(key, value) ON CONFLICT DO NOTHING
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
        now if run.started_at is None else min(run.started_at, now),
        run.display_name,
        run.notes,
        run.parent_run.rpartition("/")[2],
    )
    await insert_numbers(conn, run.name.run, run.params)


async def insert_numbers(conn: Connection, run_id: str, params: Mapping[str, str]) -> None:
    """Make those params that are numbers comparable, in the caller's transaction; the first value of a param
    is kept."""
    numbers = {key: number_of(value) for key, value in params.items()}
    found = {key: number for key, number in numbers.items() if not math.isnan(number)}
    if found:
        await conn.execute(_INSERT_NUMBERS, run_id, list(found), list(found.values()))


async def end_run_with_outcome(
    conn: Connection, run_id: str, outcome: Outcome, state: RunState, now: datetime, attempt: int
) -> None:
    """Write the outcome of a job's last attempt to its run: missing points, artifacts, provenance and the
    end.

    Points of earlier attempts remain up to the step at which the last attempt began. It works in the caller's
    transaction. Repeating it changes nothing.
    """
    await insert_points(conn, run_id, outcome.points, attempt)
    await drop_replaced_points(conn, run_id, attempt)
    await summarize_metrics(conn, run_id)
    await insert_numbers(conn, run_id, outcome.params)
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
        errors = {"run_experiment": UnknownExperiment.of(run.experiment), "run_pkey": RunExists.of(run.name)}
        async with (
            transaction(self._pool, translate=errors) as conn,
            idempotent(conn, "CreateRun", request_id, body) as once,
        ):
            if once.replay is not None:
                return await existing_run(conn, RunName.parse(once.replay.decode()))
            if run.parent_run:
                parent = RunName.parse(run.parent_run)
                # Only the id is stored: both are in one project.
                same = parent.project == run.name.project
                if not same or not await conn.fetchval(_EXISTS, parent.run, parent.project):
                    raise UnknownRun.of(parent)
            await insert_run(conn, run, now)
            once.store(str(run.name).encode())
            return await existing_run(conn, run.name)

    async def get_run(self, name: RunName) -> Run | None:
        async with connection(self._pool) as conn:
            row = await conn.fetchrow(
                SELECT_RUN + "WHERE r.id = $1 AND r.project = $2", name.run, name.project
            )
        return None if row is None else run_of(row)

    async def list_runs(
        self,
        project: str,
        conditions: Sequence[Condition],
        order: Order | None,
        size: int,
        token: str,
        *,
        show_deleted: bool = False,
    ) -> Page[Run]:
        query = repr((project, conditions, order, show_deleted))
        after = decode_token(token, query=query)
        search = RunSearch(project, tuple(conditions), order or NEWEST_FIRST, show_deleted)
        rows: list[Any] = []
        async with connection(self._pool) as conn:
            for part in search.parts(after):
                statement, parameters = search.statement(part, after, size + 1 - len(rows))
                rows += await conn.fetch(RUN_COLUMNS + statement, *parameters)
                if len(rows) > size:
                    break
        return cut([run_of(row) for row in rows], size, search.key, query=query)

    async def log(
        self,
        name: RunName,
        points: Sequence[MetricPoint],
        now: datetime,
        attempt: str = "",
        generation: int = 0,
    ) -> LoggedPoints:
        async with transaction(self._pool) as conn:
            number = await check_attempt(conn, attempt, name) if attempt else 0
            if not await conn.fetchval(_HEARTBEAT, name.run, name.project, now, generation):
                raise await not_reporting(conn, name, generation)
            return await insert_points(conn, name.run, points, number)

    async def points(self, name: RunName, key: str, size: int, token: str) -> Page[MetricPoint]:
        async with connection(self._pool) as conn:
            return await points_of(conn, name, key, size, token)

    async def update(
        self, name: RunName, update: RunUpdate, now: datetime, request_id: str = "", body: bytes = b""
    ) -> Run:
        async with (
            transaction(self._pool) as conn,
            idempotent(conn, "UpdateRun", request_id, body) as once,
        ):
            if once.replay is not None:
                return await existing_run(conn, name)
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
                update.ended_at or now,
                update.generation,
            )
            if not done:
                raise await not_reporting(conn, name, update.generation)
            await insert_numbers(conn, name.run, update.params)
            once.store(str(name).encode())
            return await existing_run(conn, name)

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


async def existing_run(conn: Connection, name: RunName) -> Run:
    """The run, which exists."""
    return run_of(await conn.fetchrow(SELECT_RUN + "WHERE r.id = $1", name.run))


async def not_reporting(conn: Connection, name: RunName, generation: int) -> FlywheelError:
    """The error for a run whose process may not report."""
    row = await conn.fetchrow(
        "SELECT state, deleted_at, generation FROM run WHERE id = $1 AND project = $2",
        name.run,
        name.project,
    )
    if row is None:
        return UnknownRun.of(name)
    if row["deleted_at"] is not None:
        return RunDeleted.of(name)
    if generation not in (0, row["generation"]):
        return RunContinued.of(name, row["generation"])
    return RunEnded.of(name, RunState(row["state"]))


def _experiment(row: Any) -> Experiment:
    return Experiment(
        ExperimentName(row["project"], row["id"]), row["description"], row["tags"], row["created_at"]
    )


def run_of(row: Any) -> Run:
    """The run in a row of RUN_COLUMNS."""
    return Run(
        name=RunName(row["project"], row["id"]),
        experiment=row["experiment"],
        state=RunState(row["state"]),
        params=row["params"],
        metrics={key: float(last) for key, (last, *_) in row["metrics"].items()},
        summaries={
            key: MetricSummary(float(low), float(high), step)
            for key, (_, low, high, step) in row["metrics"].items()
        },
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
        display_name=row["display_name"],
        notes=row["notes"],
        parent_run=str(RunName(row["project"], row["parent_run"])) if row["parent_run"] else "",
        deleted_at=row["deleted_at"],
        generation=row["generation"],
    )
