"""Retraining policies and decisions in PostgreSQL."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from flywheel_common.paging import Page, cut, decode_token
from flywheel_common.postgres.idempotency import idempotent
from flywheel_common.postgres.pool import Connection, Pool, connection, transaction
from flywheel_trainer.pipelines.pipeline_run import ModelName, PipelineSpec
from flywheel_trainer.policies.decision import Decision, Drift, Reason, decide
from flywheel_trainer.policies.policy import Policy, PolicyName
from flywheel_trainer.policies.triggered_run import made, triggered_run
from flywheel_trainer.store.postgres.pipelines import insert_pipeline_run

_SET = """
INSERT INTO retraining_policy (project, id, body, updated_at) VALUES ($1, $2, $3, $4)
ON CONFLICT (project, id) DO UPDATE SET body = excluded.body, updated_at = excluded.updated_at
"""
_GET = "SELECT * FROM retraining_policy WHERE project = $1 AND id = $2"
_DECISIONS = """
SELECT *, extract(epoch FROM created_at)::text AS age FROM retraining_decision
WHERE project = $1 AND policy = $2 AND ($3::float8 IS NULL OR (extract(epoch FROM created_at)::float8, id) < ($3, $4))
ORDER BY created_at DESC, id DESC LIMIT $5
"""
_STARTED = "SELECT event_time FROM retraining_decision WHERE project = $1 AND policy = $2 AND started"
_ACTIVE = "SELECT EXISTS (SELECT 1 FROM pipeline_run WHERE model = $1 AND state IN ('QUEUED', 'RUNNING'))"
_SEEN = "SELECT true FROM retraining_decision WHERE project = $1 AND policy = $2 AND alert = $3 AND event_time = $4"
_DECIDE = """
INSERT INTO retraining_decision (id, project, policy, alert, model, event_time, started, reason, pipeline_run, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, clock_timestamp())
"""
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended($1, 11))"


class PostgresPolicies:
    """The PolicyStore of the product."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def set(self, policy: Policy, request_id: str, body: bytes, now: datetime) -> Policy:
        async with (
            transaction(self._pool) as conn,
            idempotent(conn, "SetRetrainingPolicy", request_id, body) as once,
        ):
            if once.replay is None:
                await conn.execute(_SET, policy.project, policy.id, _body(policy), now)
                once.store(b"set")
        return policy

    async def get(self, name: PolicyName) -> Policy | None:
        async with connection(self._pool) as conn:
            return await read_policy(conn, name.project, name.policy)

    async def decisions(self, name: PolicyName, size: int, token: str) -> Page[Decision]:
        after = decode_token(token, query=str(name)) or [None, ""]
        async with connection(self._pool) as conn:
            rows = await conn.fetch(
                _DECISIONS, name.project, name.policy, None if after[0] is None else float(str(after[0])), after[1], size + 1
            )  # fmt: skip
        page = cut(rows, size, lambda row: (row["age"], row["id"]), query=str(name))
        return Page([_decision(row) for row in page.items], page.next_page_token)


class PostgresDecisions:
    """The Decisions of the product, inside a transaction that somebody else began."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    async def decide(self, drift: Drift, now: datetime) -> Decision | None:
        conn, model = self._conn, ModelName.parse(drift.model)
        policy = await read_policy(conn, model.project, model.model)
        if policy is None:
            return None
        key = (policy.project, policy.id)
        # Also when their events come from several partitions.
        await conn.execute(_LOCK, "/".join(key))
        if await conn.fetchval(_SEEN, *key, drift.alert, drift.window_end):
            return None
        started = [row["event_time"] for row in await conn.fetch(_STARTED, *key)]
        reason = decide(policy, drift, started, await conn.fetchval(_ACTIVE, drift.model))
        decision, run = made(policy, drift, reason)
        if run is not None:
            await insert_pipeline_run(conn, run, now)
        decision_id = triggered_run(policy, drift).name.run.replace("pipe-", "decision-", 1)
        await conn.execute(
            _DECIDE, decision_id, *key, drift.alert, drift.model, drift.window_end, decision.started, reason,
            decision.pipeline_run,
        )  # fmt: skip
        return decision


async def read_policy(conn: Connection, project: str, policy_id: str) -> Policy | None:
    row = await conn.fetchrow(_GET, project, policy_id)
    if row is None:
        return None
    body: dict[str, Any] = row["body"]
    return Policy(
        project=project,
        id=policy_id,
        pipeline=asdict(PipelineSpec.from_row(body["pipeline"])),
        trigger_kinds=tuple(body["trigger_kinds"]),
        cooldown=timedelta(seconds=body["cooldown_seconds"]),
        daily_budget=body["daily_budget"],
        history=timedelta(seconds=body["history_seconds"]),
        dry_run=body["dry_run"],
        disabled=body["disabled"],
    )


def _body(policy: Policy) -> dict[str, Any]:
    return {
        "pipeline": dict(policy.pipeline),
        "trigger_kinds": list(policy.trigger_kinds),
        "cooldown_seconds": policy.cooldown.total_seconds(),
        "daily_budget": policy.daily_budget,
        "history_seconds": policy.history.total_seconds(),
        "dry_run": policy.dry_run,
        "disabled": policy.disabled,
    }


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
