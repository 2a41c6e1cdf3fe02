"""`PipelineStore` on PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from flywheel_common.kafka import topics
from flywheel_common.kafka.envelope import build_event
from flywheel_common.kafka.outbox import enqueue
from flywheel_common.paging import Page, cut, decode_token
from flywheel_common.postgres.idempotency import idempotent
from flywheel_common.postgres.pool import Connection, Pool, connection, transaction
from flywheel_protos.events.v1.lifecycle_pb2 import TrainingCompleted
from flywheel_trainer.jobs.job import ENDED, JobState
from flywheel_trainer.pipelines.errors import PipelineRunEnded, UnknownPipelineRun
from flywheel_trainer.pipelines.pipeline_run import STEPS, PipelineRun, PipelineRunName, PipelineSpec, Step
from flywheel_trainer.runs.filter_terms import Term
from flywheel_trainer.store.postgres.jobs import cancel_jobs_of
from flywheel_trainer.store.postgres.text_conditions import text_conditions

_INSERT = """
INSERT INTO pipeline_run (id, project, model, spec, state, cause_alert, event_time, created_at)
VALUES ($1, $2, $3, $4, 'QUEUED', $5, $6, $7)
"""
_INSERT_STEPS = """
INSERT INTO pipeline_step (pipeline_run, position, step, state)
SELECT $1, ordinality, step, 'QUEUED' FROM unnest($2::text[]) WITH ORDINALITY AS s (step, ordinality)
"""
_SELECT = """
SELECT p.*, (
    SELECT jsonb_agg(
        jsonb_build_array(s.step, s.state, s.started_at, s.ended_at, s.output, s.message) ORDER BY position
    )
    FROM pipeline_step s WHERE s.pipeline_run = p.id
) AS steps
FROM pipeline_run p
"""
_GET = _SELECT + "WHERE id = $1 AND project = $2"
_LIST = _SELECT + "WHERE project = $1 AND ($2 = '' OR id < $2)"
_NEWEST = " ORDER BY id DESC LIMIT $3"
_COLUMNS = {"state": "state", "model": "model", "cause_alert": "cause_alert"}
_UNFINISHED = "SELECT project, id FROM pipeline_run WHERE state IN ('QUEUED', 'RUNNING') ORDER BY id"
_CANCEL = """
UPDATE pipeline_run SET cancel_requested = true
WHERE id = $1 AND project = $2 AND state IN ('QUEUED', 'RUNNING') RETURNING true
"""
_BEGIN_RUN = "UPDATE pipeline_run SET state = 'RUNNING' WHERE id = $1 AND state = 'QUEUED'"
_BEGIN_STEP = """
UPDATE pipeline_step SET state = 'RUNNING', started_at = coalesce(started_at, $3)
WHERE pipeline_run = $1 AND step = $2 AND state IN ('QUEUED', 'RUNNING')
"""
_END_STEP = """
UPDATE pipeline_step SET state = 'SUCCEEDED', output = $3, message = $4, ended_at = coalesce(ended_at, $5)
WHERE pipeline_run = $1 AND step = $2
"""
_SET_FIELDS = """
UPDATE pipeline_run SET
    training_set = coalesce($2::jsonb ->> 'training_set', training_set), run = coalesce($2::jsonb ->> 'run',
    run), model_version = coalesce($2::jsonb ->> 'model_version', model_version), release = coalesce($2::jsonb
    ->> 'release', release), rollout = coalesce($2::jsonb ->> 'rollout', rollout), gate_passed =
    coalesce(($2::jsonb ->> 'gate_passed')::boolean, gate_passed) WHERE id = $1
"""
_FINISH = """
UPDATE pipeline_run SET state = $2, error_reason = $3, error_message = $4, ended_at = $5
WHERE id = $1 AND state IN ('QUEUED', 'RUNNING')
RETURNING project, model, model_version, cause_alert, event_time
"""
_FINISH_RUNNING_STEP = """
UPDATE pipeline_step SET state = $2, message = $3, ended_at = $4
WHERE pipeline_run = $1 AND state = 'RUNNING'
"""
_SKIP_STEPS = """
UPDATE pipeline_step SET state = 'CANCELLED', message = 'not run'
WHERE pipeline_run = $1 AND state = 'QUEUED'
"""


async def insert_pipeline_run(conn: Connection, run: PipelineRun, now: datetime) -> None:
    """Insert a run in the caller's transaction: a retraining decision is stored together with its run."""
    await conn.execute(
        _INSERT,
        run.name.run,
        run.name.project,
        run.spec.model,
        asdict(run.spec),
        run.cause_alert,
        run.event_time,
        now,
    )
    await conn.execute(_INSERT_STEPS, run.name.run, list(STEPS))


class PostgresPipelines:
    """`PipelineStore` on PostgreSQL; `finish` writes the `training.completed` event to the outbox."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def create(self, run: PipelineRun, request_id: str, body: bytes, now: datetime) -> PipelineRun:
        async with (
            transaction(self._pool) as conn,
            idempotent(conn, "StartPipelineRun", request_id, body) as once,
        ):
            if once.replay is not None:
                name = PipelineRunName.parse(once.replay.decode())
                return _run(await conn.fetchrow(_GET, name.run, name.project))
            await insert_pipeline_run(conn, run, now)
            once.store(str(run.name).encode())
            return _run(await conn.fetchrow(_GET, run.name.run, run.name.project))

    async def get(self, name: PipelineRunName) -> PipelineRun | None:
        async with connection(self._pool) as conn:
            row = await conn.fetchrow(_GET, name.run, name.project)
        return None if row is None else _run(row)

    async def list(self, project: str, terms: Sequence[Term], size: int, token: str) -> Page[PipelineRun]:
        query = repr((project, terms))
        after = decode_token(token, query=query) or [""]
        conditions, parameters = text_conditions(terms, _COLUMNS, [project, after[0], size + 1])
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_LIST + conditions + _NEWEST, *parameters)
        return cut([_run(row) for row in rows], size, lambda r: (r.name.run,), query=query)

    async def unfinished(self) -> Sequence[PipelineRunName]:
        async with connection(self._pool) as conn:
            return [PipelineRunName(row["project"], row["id"]) for row in await conn.fetch(_UNFINISHED)]

    async def request_cancel(
        self, name: PipelineRunName, request_id: str = "", body: bytes = b""
    ) -> PipelineRun:
        async with (
            transaction(self._pool) as conn,
            idempotent(conn, "CancelPipelineRun", request_id, body) as once,
        ):
            done = once.replay is not None or await conn.fetchval(_CANCEL, name.run, name.project)
            row = await conn.fetchrow(_GET, name.run, name.project)
            if row is None:
                raise UnknownPipelineRun.of(name)
            if not done:
                raise PipelineRunEnded.of(name, row["state"])
            if once.replay is None:
                await cancel_jobs_of(conn, str(name))
                once.store(str(name).encode())
            return _run(row)

    async def begin_step(self, name: PipelineRunName, step: str, now: datetime) -> None:
        async with transaction(self._pool) as conn:
            await conn.execute(_BEGIN_RUN, name.run)
            await conn.execute(_BEGIN_STEP, name.run, step, now)

    async def set_fields(self, name: PipelineRunName, fields: Mapping[str, Any]) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(_SET_FIELDS, name.run, dict(fields))

    async def end_step(
        self,
        name: PipelineRunName,
        step: str,
        output: str,
        message: str,
        fields: Mapping[str, Any],
        now: datetime,
    ) -> None:
        async with transaction(self._pool) as conn:
            await conn.execute(_END_STEP, name.run, step, output, message, now)
            await conn.execute(_SET_FIELDS, name.run, dict(fields))

    async def finish(
        self, name: PipelineRunName, state: JobState, reason: str, message: str, now: datetime
    ) -> None:
        assert state in ENDED
        failed = state is not JobState.SUCCEEDED
        async with transaction(self._pool) as conn:
            row = await conn.fetchrow(
                _FINISH, name.run, state, reason if failed else "", message if failed else "", now
            )
            if row is None:
                return
            await conn.execute(_FINISH_RUNNING_STEP, name.run, state, message, now)
            await conn.execute(_SKIP_STEPS, name.run)
            await cancel_jobs_of(conn, str(name))
            payload = TrainingCompleted(
                pipeline_run=str(name),
                model=row["model"],
                model_version=row["model_version"],
                succeeded=not failed,
                message=message,
                cause_alert=row["cause_alert"],
            )
            event = build_event(
                payload,
                source="flywheel-trainer",
                key=row["model"],
                event_time=row["event_time"],
                event_id=f"{name.run}:completed",
            )
            await enqueue(conn, topics.TRAINING_COMPLETED, event)


def _run(row: Any) -> PipelineRun:
    return PipelineRun(
        name=PipelineRunName(row["project"], row["id"]),
        spec=PipelineSpec.from_json(row["spec"]),
        event_time=row["event_time"],
        state=JobState(row["state"]),
        steps=tuple(
            Step(step, JobState(state), _time(start), _time(end), output, message)
            for step, state, start, end, output, message in row["steps"]
        ),
        training_set=row["training_set"],
        run=row["run"],
        model_version=row["model_version"],
        release=row["release"],
        rollout=row["rollout"],
        gate_passed=row["gate_passed"],
        error_reason=row["error_reason"],
        error_message=row["error_message"],
        cause_alert=row["cause_alert"],
        cancel_requested=row["cancel_requested"],
        created_at=row["created_at"],
        ended_at=row["ended_at"],
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
