"""`PolicyStore` and `Decisions` on PostgreSQL."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from flywheel_common.paging import Page, cut, decode_token
from flywheel_common.postgres.idempotency import idempotent
from flywheel_common.postgres.pool import Connection, Pool, connection, transaction
from flywheel_trainer.encoding.specs import spec_to_json
from flywheel_trainer.pipelines.pipeline_run import ModelName, PipelineSpec
from flywheel_trainer.policies.decision import Decision, Drift, Reason, decide
from flywheel_trainer.policies.policy import Policy, PolicyName
from flywheel_trainer.policies.triggered_run import decision_and_run, window_id
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
_LOCK_POLICY = "SELECT pg_advisory_xact_lock(hashtextextended($1, 11))"
_WINDOW_DECIDED = """
SELECT true FROM retraining_decision WHERE project = $1 AND policy = $2 AND alert = $3 AND event_time = $4
"""
_STARTED_AT = "SELECT event_time FROM retraining_decision WHERE project = $1 AND policy = $2 AND started"
_RUN_ACTIVE = "SELECT EXISTS (SELECT 1 FROM pipeline_run WHERE model = $1 AND state IN ('QUEUED', 'RUNNING'))"
_INSERT_DECISION = """
INSERT INTO retraining_decision
    (id, project, policy, alert, model, event_time, started, reason, pipeline_run, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, clock_timestamp())
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
        if await self._is_decided(policy.name, drift):
            return None
        reason = decide(
            policy,
            drift,
            started_at=await self._started_at(policy.name),
            run_active=await self._conn.fetchval(_RUN_ACTIVE, drift.model),
        )
        decision, run = decision_and_run(policy, drift, reason, spec_to_json)
        if run is not None:
            await insert_pipeline_run(self._conn, run, now)
        await self._insert(f"decision-{window_id(policy, drift)}", decision)
        return decision

    async def _lock(self, name: PolicyName) -> None:
        """Serialize the decisions of a policy: events of one model can come from several partitions."""
        await self._conn.execute(_LOCK_POLICY, f"{name.project}/{name.policy}")

    async def _is_decided(self, name: PolicyName, drift: Drift) -> bool:
        window = (drift.alert, drift.window_end)
        return bool(await self._conn.fetchval(_WINDOW_DECIDED, name.project, name.policy, *window))

    async def _started_at(self, name: PolicyName) -> list[datetime]:
        """Event times of the runs that the policy has started."""
        rows = await self._conn.fetch(_STARTED_AT, name.project, name.policy)
        return [row["event_time"] for row in rows]

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
    }


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
    )
