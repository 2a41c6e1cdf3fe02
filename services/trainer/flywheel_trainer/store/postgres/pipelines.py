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
from flywheel_trainer.pipelines.cache import CachedStep
from flywheel_trainer.pipelines.errors import (
    PipelineRunEnded,
    StepNotWaiting,
    UnknownPipelineRun,
    UnknownStep,
)
from flywheel_trainer.pipelines.graph import Graph, GraphStep
from flywheel_trainer.pipelines.pipeline_run import (
    Approval,
    PipelineRun,
    PipelineRunName,
    PipelineSpec,
    Step,
    fields_in,
)
from flywheel_trainer.pipelines.ports import Ended
from flywheel_trainer.runs.filter_terms import Term
from flywheel_trainer.store.postgres.jobs import cancel_jobs_of
from flywheel_trainer.store.postgres.text_conditions import text_conditions

_INSERT = """
INSERT INTO pipeline_run (
    id, project, model, spec, state, cause_alert, event_time, created_at, pipeline, params, rerun_of, policy,
    training_set, run, model_version, release, rollout, gate_passed
)
VALUES ($1, $2, $3, $4, 'QUEUED', $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
"""
_INSERT_STEP = """
INSERT INTO pipeline_step (
    pipeline_run, position, step, state, definition, started_at, ended_at, output, message, outputs, attempt,
    reused_from
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
"""
_SELECT = """
SELECT p.*, (
    SELECT jsonb_agg(to_jsonb(s) - 'pipeline_run' ORDER BY position) FROM pipeline_step s WHERE
    s.pipeline_run = p.id
) AS steps
FROM pipeline_run p
"""
_GET = _SELECT + "WHERE id = $1 AND project = $2"
_LIST = _SELECT + "WHERE project = $1 AND ($2 = '' OR id < $2)"
_NEWEST = " ORDER BY id DESC LIMIT $3"
_COLUMNS = {"state": "state", "model": "model", "cause_alert": "cause_alert", "pipeline": "pipeline"}
_UNFINISHED = "SELECT project, id FROM pipeline_run WHERE state IN ('QUEUED', 'RUNNING') ORDER BY id"
_CANCEL = """
UPDATE pipeline_run SET cancel_requested = true
WHERE id = $1 AND project = $2 AND state IN ('QUEUED', 'RUNNING') RETURNING true
"""
_BEGIN_RUN = "UPDATE pipeline_run SET state = 'RUNNING' WHERE id = $1 AND state = 'QUEUED'"
_BEGIN_STEP = """
UPDATE pipeline_step
SET state = 'RUNNING', started_at = coalesce(started_at, $3), attempt = greatest(attempt, 1)
WHERE pipeline_run = $1 AND step = $2 AND state IN ('QUEUED', 'RUNNING')
"""
_BEGIN_ATTEMPT = """
UPDATE pipeline_step SET attempt = $3, message = $4
WHERE pipeline_run = $1 AND step = $2 AND state = 'RUNNING' AND attempt <= $3
"""
_END_STEP = """
UPDATE pipeline_step SET
    state = $3, output = $4, message = $5, outputs = $6, error_reason = $7, reused_from = $8, ended_at = $9
WHERE pipeline_run = $1 AND step = $2 AND state IN ('QUEUED', 'RUNNING') RETURNING true
"""
_CACHE = """
INSERT INTO pipeline_step_cache (project, key, pipeline_run, step, created_at) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (project, key) DO UPDATE SET
    pipeline_run = excluded.pipeline_run, step = excluded.step, created_at = excluded.created_at
"""
_CACHED = """
SELECT s.output, s.message, s.outputs, c.pipeline_run FROM pipeline_step_cache c
JOIN pipeline_step s USING (pipeline_run, step) WHERE c.project = $1 AND c.key = $2
"""
_DECIDE = """
UPDATE pipeline_step SET approval = $3
WHERE pipeline_run = $1 AND step = $2 AND state = 'RUNNING' AND definition ->> 'kind' = 'approval'
    AND (approval IS NULL OR (approval ->> 'approved')::boolean = ($3::jsonb ->> 'approved')::boolean)
RETURNING true
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
        run.model,
        None if run.spec is None else asdict(run.spec),
        run.cause_alert,
        run.event_time,
        now,
        run.pipeline,
        dict(run.params),
        run.rerun_of,
        run.policy,
        run.training_set,
        run.run,
        run.model_version,
        run.release,
        run.rollout,
        run.gate_passed,
    )
    rows = [
        (
            run.name.run,
            position,
            step.step,
            step.state,
            asdict(definition),
            step.started_at,
            step.ended_at,
            step.output,
            step.message,
            dict(step.outputs),
            step.attempt,
            step.reused_from,
        )
        for position, (definition, step) in enumerate(zip(run.graph.steps, run.steps, strict=True), 1)
    ]
    await conn.executemany(_INSERT_STEP, rows)


class PostgresPipelines:
    """`PipelineStore` and `StepCache` on PostgreSQL; `finish` writes the `training.completed` event to the
    outbox."""

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

    async def begin_attempt(self, name: PipelineRunName, step: str, attempt: int, message: str) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(_BEGIN_ATTEMPT, name.run, step, attempt, message)

    async def end_step(
        self, name: PipelineRunName, step: str, ended: Ended, now: datetime, cache_key: str = ""
    ) -> None:
        async with transaction(self._pool) as conn:
            first = await conn.fetchval(
                _END_STEP,
                name.run,
                step,
                ended.state,
                ended.output,
                ended.message,
                dict(ended.outputs),
                ended.reason,
                ended.reused_from,
                now,
            )
            if first and ended.state is JobState.SUCCEEDED:
                await conn.execute(_SET_FIELDS, name.run, fields_in(ended.outputs))
                if cache_key:
                    await conn.execute(_CACHE, name.project, cache_key, name.run, step, now)

    async def find(self, project: str, key: str) -> CachedStep | None:
        """`StepCache.find`."""
        async with connection(self._pool) as conn:
            row = await conn.fetchrow(_CACHED, project, key)
        if row is None:
            return None
        run = PipelineRunName(project, row["pipeline_run"])
        return CachedStep(str(run), row["output"], row["message"], row["outputs"])

    async def decide(
        self, name: PipelineRunName, step: str, approval: Approval, request_id: str, body: bytes
    ) -> PipelineRun:
        async with (
            transaction(self._pool) as conn,
            idempotent(conn, "ApprovePipelineStep", request_id, body) as once,
        ):
            row = await conn.fetchrow(_GET, name.run, name.project)
            if row is None:
                raise UnknownPipelineRun.of(name)
            if once.replay is None:
                if _run(row).step(step) is None:
                    raise UnknownStep.of(name, step)
                if not await conn.fetchval(_DECIDE, name.run, step, asdict(approval)):
                    raise StepNotWaiting.of(name, step)
                once.store(str(name).encode())
            return _run(await conn.fetchrow(_GET, name.run, name.project))

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
            if not row["model"]:
                return
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
    graph = Graph(tuple(GraphStep.from_json(step["definition"]) for step in row["steps"]))
    return PipelineRun(
        name=PipelineRunName(row["project"], row["id"]),
        event_time=row["event_time"],
        graph=graph,
        spec=None if row["spec"] is None else PipelineSpec.from_json(row["spec"]),
        model=row["model"],
        pipeline=row["pipeline"],
        params=row["params"],
        rerun_of=row["rerun_of"],
        policy=row["policy"],
        state=JobState(row["state"]),
        steps=tuple(_step(step) for step in row["steps"]),
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


def _step(row: dict[str, Any]) -> Step:
    return Step(
        step=row["step"],
        state=JobState(row["state"]),
        started_at=_time(row["started_at"]),
        ended_at=_time(row["ended_at"]),
        output=row["output"],
        message=row["message"],
        outputs=row["outputs"],
        attempt=row["attempt"],
        error_reason=row["error_reason"],
        approval=None if row["approval"] is None else Approval(**row["approval"]),
        reused_from=row["reused_from"],
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
