"""`PolicyStore` and `Decisions` on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any

from flywheel_common.paging import Page, cut, decode_token
from flywheel_common.postgres.idempotency import idempotent
from flywheel_common.postgres.pool import Connection, Pool, connection, transaction
from flywheel_trainer.encoding.specs import spec_to_json
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.pipelines.definition import Pipeline
from flywheel_trainer.pipelines.pipeline_run import ModelName
from flywheel_trainer.policies.decision import (
    Active,
    Decision,
    Drift,
    Reason,
    StartedRun,
    Trigger,
    decide,
    decide_time,
    trained_until,
    with_reruns,
)
from flywheel_trainer.policies.policy import Policy, PolicyName
from flywheel_trainer.policies.ports import TimedPolicy
from flywheel_trainer.policies.schedule import Due
from flywheel_trainer.policies.triggered_run import (
    Candidate,
    Cause,
    candidate_run,
    cause_id,
    decided,
    has_trigger,
    stored_pipeline_of,
)
from flywheel_trainer.store.postgres.pipeline_definitions import read_pipeline
from flywheel_trainer.store.postgres.pipelines import insert_pipeline_run
from flywheel_trainer.store.postgres.policy_json import policy_from_json, policy_to_json

_SET = """
INSERT INTO retraining_policy (project, id, body, updated_at) VALUES ($1, $2, $3, $4)
ON CONFLICT (project, id) DO UPDATE SET body = excluded.body, updated_at = CASE
    WHEN retraining_policy.body = excluded.body THEN retraining_policy.updated_at ELSE excluded.updated_at END
"""
_GET = "SELECT body FROM retraining_policy WHERE project = $1 AND id = $2"
_LIST = "SELECT * FROM retraining_policy WHERE project = $1 AND id > $2 ORDER BY id LIMIT $3"
_DECISIONS = """
SELECT *, extract(epoch FROM created_at)::text AS created_seconds FROM retraining_decision
WHERE project = $1 AND policy = $2
    AND ($3::float8 IS NULL OR (extract(epoch FROM created_at)::float8, id) < ($3, $4))
ORDER BY created_at DESC, id DESC LIMIT $5
"""
_DECISION_OF = """
SELECT * FROM retraining_decision WHERE project = $1 AND policy = $2 AND pipeline_run = $3 AND started LIMIT 1
"""
_LOCK_POLICY = "SELECT pg_advisory_xact_lock(hashtextextended($1, 11))"
_DECIDED = """
SELECT true FROM retraining_decision
WHERE project = $1 AND policy = $2 AND trigger = $3 AND alert = $4 AND event_time = $5
"""
_STARTED_AT = """
WITH RECURSIVE started AS (
    SELECT id, event_time, pipeline_run AS run, 0 AS depth FROM retraining_decision
    WHERE project = $1 AND policy = $2 AND trigger = $3 AND started
    UNION ALL
    SELECT s.id, s.event_time, 'projects/' || r.project || '/pipelineRuns/' || r.id, s.depth + 1
    FROM started s JOIN pipeline_run r ON r.rerun_of = s.run AND r.rerun_of <> ''
)
SELECT s.id, s.event_time, r.state, coalesce(r.run, '') <> '' AS tracked
FROM started s
LEFT JOIN pipeline_run r ON 'projects/' || r.project || '/pipelineRuns/' || r.id = s.run
ORDER BY s.id, s.depth
"""
_TIMED = """
SELECT p.project, p.id, p.body, p.updated_at, (
    SELECT jsonb_object_agg(trigger, newest) FROM (
        SELECT trigger, max(event_time) AS newest FROM retraining_decision d
        WHERE d.project = p.project AND d.policy = p.id AND trigger <> 'DRIFT' GROUP BY trigger
    ) AS newest_times
) AS decided
FROM retraining_policy p
WHERE (p.body -> 'schedule' <> 'null' OR p.body -> 'continuous' <> 'null') AND NOT (p.body ->>
'disabled')::boolean ORDER BY p.project, p.id
"""
_MODEL_ACTIVE = """
SELECT EXISTS (SELECT 1 FROM pipeline_run WHERE model = $1 AND $1 <> '' AND state IN ('QUEUED', 'RUNNING'))
"""
_INSERT_DECISION = """
INSERT INTO retraining_decision
    (id, project, policy, alert, model, event_time, started, reason, pipeline_run, trigger, message,
    created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, clock_timestamp())
"""


class PostgresPolicies:
    """`PolicyStore` on PostgreSQL."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def set(self, policy: Policy, request_id: str, body: bytes, now: datetime) -> Policy:
        async with (
            transaction(self._pool) as conn,
            idempotent(conn, "SetRetrainingPolicy", request_id, body) as once,
        ):
            if once.replay is None:
                await conn.execute(_SET, policy.name.project, policy.name.policy, policy_to_json(policy), now)
                once.store(b"set")
        return policy

    async def get(self, name: PolicyName) -> Policy | None:
        async with connection(self._pool) as conn:
            return await _read_policy(conn, name)

    async def list(self, project: str, size: int, token: str) -> Page[Policy]:
        (after,) = decode_token(token, query=project) or [""]
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_LIST, project, after, size + 1)
        policies = [policy_from_json(PolicyName(row["project"], row["id"]), row["body"]) for row in rows]
        return cut(policies, size, lambda p: (p.name.policy,), query=project)

    async def decisions(self, name: PolicyName, size: int, token: str) -> Page[Decision]:
        key = decode_token(token, query=str(name))
        before, before_id = (float(str(key[0])), key[1]) if key else (None, "")
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_DECISIONS, name.project, name.policy, before, before_id, size + 1)
        page = cut(rows, size, lambda row: (row["created_seconds"], row["id"]), query=str(name))
        return Page([_decision(row) for row in page.items], page.next_page_token)

    async def decision_of(self, name: PolicyName, pipeline_run: str) -> Decision | None:
        async with connection(self._pool) as conn:
            row = await conn.fetchrow(_DECISION_OF, name.project, name.policy, pipeline_run)
        return None if row is None else _decision(row)

    async def timed(self) -> Sequence[TimedPolicy]:
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_TIMED)
        return [
            TimedPolicy(
                policy_from_json(PolicyName(row["project"], row["id"]), row["body"]),
                row["updated_at"],
                {Trigger(t): datetime.fromisoformat(at) for t, at in (row["decided"] or {}).items()},
            )
            for row in rows
        ]

    async def decide_time(
        self, name: PolicyName, trigger: Trigger, due: Due, now: datetime
    ) -> Decision | None:
        async with transaction(self._pool) as conn:
            return await PostgresDecisions(conn).decide_time(name, trigger, due, now)


class PostgresDecisions:
    """`Decisions` in the transaction of `conn`, which the caller commits."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    async def decide(self, drift: Drift, now: datetime) -> Decision | None:
        model = ModelName.parse(drift.model)
        policy = await _read_policy(self._conn, PolicyName(model.project, model.model))
        if policy is None:
            return None
        await self._lock(policy.name)
        if await self._is_decided(policy.name, Trigger.DRIFT, drift.alert, drift.window_end):
            return None
        started = await self._started(policy.name, Trigger.DRIFT)
        cause = Cause.of_drift(drift)
        candidate = await self._candidate(policy, cause)
        reason = decide(
            policy,
            drift,
            started_at=[run.event_time for run in started if not run.failed],
            run_active=bool(await self._active(started, candidate)),
            failed_at=[run.event_time for run in started if run.failed],
        )
        return await self._store(policy, cause, reason, candidate, now)

    async def decide_time(
        self, name: PolicyName, trigger: Trigger, due: Due, now: datetime
    ) -> Decision | None:
        """`PolicyStore.decide_time`."""
        await self._lock(name)
        policy = await _read_policy(self._conn, name)
        if policy is None or not has_trigger(policy, trigger):
            return None
        if await self._is_decided(name, trigger, "", due.time):
            return None
        started = await self._started(name, trigger)
        cause = Cause(trigger, due.time, trained_until=trained_until(started, due.time))
        candidate = await self._candidate(policy, cause)
        active = await self._active(started, candidate)
        reason = decide_time(policy, trigger, due, started, active)
        if reason is None:
            return None
        return await self._store(policy, cause, reason, candidate, now)

    async def _candidate(self, policy: Policy, cause: Cause) -> Candidate:
        stored = stored_pipeline_of(policy, cause.trigger)
        definition: Pipeline | None = None
        if stored is not None:
            definition = await read_pipeline(self._conn, *stored.version)
        return candidate_run(policy, cause, definition, spec_to_json)

    async def _active(self, started: Sequence[StartedRun], candidate: Candidate) -> Active:
        of_model = bool(await self._conn.fetchval(_MODEL_ACTIVE, candidate.model))
        return Active(any(run.active for run in started), of_model)

    async def _store(
        self, policy: Policy, cause: Cause, reason: Reason, candidate: Candidate, now: datetime
    ) -> Decision:
        decision = decided(policy, cause, reason, candidate)
        if decision.started and candidate.run is not None:
            await insert_pipeline_run(self._conn, candidate.run, now)
        await self._insert(f"decision-{cause_id(policy, cause)}", decision)
        return decision

    async def _lock(self, name: PolicyName) -> None:
        """Serialize the decisions of a policy: events of one model can come from several partitions."""
        await self._conn.execute(_LOCK_POLICY, f"{name.project}/{name.policy}")

    async def _is_decided(self, name: PolicyName, trigger: Trigger, alert: str, time: datetime) -> bool:
        found = await self._conn.fetchval(_DECIDED, name.project, name.policy, trigger, alert, time)
        return bool(found)

    async def _started(self, name: PolicyName, trigger: Trigger) -> list[StartedRun]:
        """The runs that the trigger has started."""
        rows = await self._conn.fetch(_STARTED_AT, name.project, name.policy, trigger)
        return [
            with_reruns([_started_run(row) for row in runs]) for _, runs in groupby(rows, itemgetter("id"))
        ]

    async def _insert(self, decision_id: str, decision: Decision) -> None:
        await self._conn.execute(
            _INSERT_DECISION,
            decision_id,
            decision.policy.project,
            decision.policy.policy,
            decision.alert,
            decision.model,
            decision.event_time,
            decision.started,
            decision.reason,
            decision.pipeline_run,
            decision.trigger,
            decision.message,
        )


async def _read_policy(conn: Connection, name: PolicyName) -> Policy | None:
    body: dict[str, Any] | None = await conn.fetchval(_GET, name.project, name.policy)
    return None if body is None else policy_from_json(name, body)


def _started_run(row: Any) -> StartedRun:
    return StartedRun(row["event_time"], JobState(row["state"]) if row["state"] else None, row["tracked"])


def _decision(row: Any) -> Decision:
    return Decision(
        policy=PolicyName(row["project"], row["policy"]),
        alert=row["alert"],
        model=row["model"],
        event_time=row["event_time"],
        started=row["started"],
        reason=Reason(row["reason"]),
        pipeline_run=row["pipeline_run"],
        trigger=Trigger(row["trigger"]),
        message=row["message"],
    )
