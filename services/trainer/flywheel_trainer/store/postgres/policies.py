"""`PolicyStore` and `Decisions` on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from flywheel_common.paging import Page, cut, decode_token
from flywheel_common.postgres.idempotency import idempotent
from flywheel_common.postgres.pool import Connection, Pool, connection, transaction
from flywheel_trainer.encoding.specs import spec_to_json
from flywheel_trainer.pipelines.pipeline_run import ModelName, PipelineSpec
from flywheel_trainer.policies.decision import Decision, Drift, Reason, Trigger, decide, decide_time
from flywheel_trainer.policies.policy import Policy, PolicyName
from flywheel_trainer.policies.ports import TimedPolicy
from flywheel_trainer.policies.schedule import Continuous, Due, Misfire, Schedule
from flywheel_trainer.policies.triggered_run import (
    decision_and_run,
    time_id,
    timed_decision_and_run,
    window_id,
)
from flywheel_trainer.store.postgres.pipelines import insert_pipeline_run

_SET = """
INSERT INTO retraining_policy (project, id, body, updated_at) VALUES ($1, $2, $3, $4)
ON CONFLICT (project, id) DO UPDATE SET body = excluded.body, updated_at = excluded.updated_at
"""
_GET = "SELECT body FROM retraining_policy WHERE project = $1 AND id = $2"
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
SELECT d.event_time, coalesce(r.state IN ('FAILED', 'LOST'), false) AS failed
FROM retraining_decision d
LEFT JOIN pipeline_run r ON 'projects/' || r.project || '/pipelineRuns/' || r.id = d.pipeline_run
WHERE d.project = $1 AND d.policy = $2 AND d.trigger = $3 AND d.started
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
_RUN_ACTIVE = "SELECT EXISTS (SELECT 1 FROM pipeline_run WHERE model = $1 AND state IN ('QUEUED', 'RUNNING'))"
_INSERT_DECISION = """
INSERT INTO retraining_decision
    (id, project, policy, alert, model, event_time, started, reason, pipeline_run, trigger, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, clock_timestamp())
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
                await conn.execute(
                    _SET, policy.name.project, policy.name.policy, _policy_to_json(policy), now
                )
                once.store(b"set")
        return policy

    async def get(self, name: PolicyName) -> Policy | None:
        async with connection(self._pool) as conn:
            return await _read_policy(conn, name)

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
                _policy_from_json(PolicyName(row["project"], row["id"]), row["body"]),
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
        reason = decide(
            policy,
            drift,
            started_at=[at for at, failed in started if not failed],
            run_active=await self._conn.fetchval(_RUN_ACTIVE, drift.model),
            failed_at=[at for at, failed in started if failed],
        )
        decision, run = decision_and_run(policy, drift, reason, spec_to_json)
        if run is not None:
            await insert_pipeline_run(self._conn, run, now)
        await self._insert(f"decision-{window_id(policy, drift)}", decision)
        return decision

    async def decide_time(
        self, name: PolicyName, trigger: Trigger, due: Due, now: datetime
    ) -> Decision | None:
        """`PolicyStore.decide_time`."""
        await self._lock(name)
        policy = await _read_policy(self._conn, name)
        if policy is None or await self._is_decided(name, trigger, "", due.time):
            return None
        started = await self._started(name, trigger)
        active = await self._conn.fetchval(_RUN_ACTIVE, policy.pipeline.model)
        reason = decide_time(policy, trigger, due, [at for at, _ in started], active)
        if reason is None:
            return None
        decision, run = timed_decision_and_run(policy, trigger, due.time, reason, spec_to_json)
        if run is not None:
            await insert_pipeline_run(self._conn, run, now)
        await self._insert(f"decision-{time_id(policy, trigger, due.time)}", decision)
        return decision

    async def _lock(self, name: PolicyName) -> None:
        """Serialize the decisions of a policy: events of one model can come from several partitions."""
        await self._conn.execute(_LOCK_POLICY, f"{name.project}/{name.policy}")

    async def _is_decided(self, name: PolicyName, trigger: Trigger, alert: str, time: datetime) -> bool:
        found = await self._conn.fetchval(_DECIDED, name.project, name.policy, trigger, alert, time)
        return bool(found)

    async def _started(self, name: PolicyName, trigger: Trigger) -> list[tuple[datetime, bool]]:
        """(event time, whether it failed) of the runs that the trigger has started."""
        rows = await self._conn.fetch(_STARTED_AT, name.project, name.policy, trigger)
        return [(row["event_time"], row["failed"]) for row in rows]

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
        )


async def _read_policy(conn: Connection, name: PolicyName) -> Policy | None:
    body: dict[str, Any] | None = await conn.fetchval(_GET, name.project, name.policy)
    return None if body is None else _policy_from_json(name, body)


def _policy_to_json(policy: Policy) -> dict[str, Any]:
    return {
        "pipeline": asdict(policy.pipeline),
        "trigger_kinds": list(policy.trigger_kinds),
        "cooldown_seconds": policy.cooldown.total_seconds(),
        "daily_budget": policy.daily_budget,
        "history_seconds": policy.history.total_seconds(),
        "dry_run": policy.dry_run,
        "disabled": policy.disabled,
        "ignore_drift": policy.ignore_drift,
        "schedule": None if policy.schedule is None else _schedule_to_json(policy.schedule),
        "continuous": None if policy.continuous is None else _continuous_to_json(policy.continuous),
    }


def _schedule_to_json(schedule: Schedule) -> dict[str, Any]:
    return {
        "cron": schedule.cron,
        "time_zone": schedule.time_zone,
        "misfire": schedule.misfire,
        "grace_seconds": schedule.grace.total_seconds(),
        "jitter_seconds": schedule.jitter.total_seconds(),
    }


def _continuous_to_json(continuous: Continuous) -> dict[str, Any]:
    return {
        "window_seconds": continuous.window.total_seconds(),
        "delay_seconds": continuous.delay.total_seconds(),
        "min_rows": continuous.min_rows,
        "daily_budget": continuous.daily_budget,
    }


def _schedule_from_json(body: dict[str, Any] | None) -> Schedule | None:
    if body is None:
        return None
    return Schedule(
        body["cron"],
        body["time_zone"],
        Misfire(body["misfire"]),
        timedelta(seconds=body["grace_seconds"]),
        timedelta(seconds=body["jitter_seconds"]),
    )


def _continuous_from_json(body: dict[str, Any] | None) -> Continuous | None:
    if body is None:
        return None
    return Continuous(
        timedelta(seconds=body["window_seconds"]),
        timedelta(seconds=body["delay_seconds"]),
        body["min_rows"],
        body["daily_budget"],
    )


def _policy_from_json(name: PolicyName, body: dict[str, Any]) -> Policy:
    return Policy(
        name=name,
        pipeline=PipelineSpec.from_json(body["pipeline"]),
        trigger_kinds=tuple(body["trigger_kinds"]),
        cooldown=timedelta(seconds=body["cooldown_seconds"]),
        daily_budget=body["daily_budget"],
        history=timedelta(seconds=body["history_seconds"]),
        dry_run=body["dry_run"],
        disabled=body["disabled"],
        ignore_drift=body.get("ignore_drift", False),
        schedule=_schedule_from_json(body.get("schedule")),
        continuous=_continuous_from_json(body.get("continuous")),
    )


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
    )
