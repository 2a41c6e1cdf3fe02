"""Rollouts, routing and serving history in PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

from flywheel_common.postgres.pool import Connection
from flywheel_registry.policy import rollout_to_dict
from flywheel_registry.resources import Rollout, RolloutStep
from flywheel_registry.rollout import Progress
from flywheel_registry.serving import Routing, Span
from flywheel_registry.store import rows
from flywheel_registry.store import statements as sql


class Routes:
    """Part of `Records`; `_conn` is the transaction's connection."""

    _conn: Connection

    async def add_rollout(self, rollout: Rollout) -> Rollout:
        number: int = await self._conn.fetchval(sql.NEXT_NUMBER["rollout"], rollout.model)
        o = replace(rollout, number=number)
        at = o.progress
        await self._conn.execute(
            sql.INSERT_ROLLOUT, o.model, o.number, o.champion, o.challenger, at.state.value, None, at.step, at.challenger_percent,
            rows.dumps(rollout_to_dict(o.policy)), o.step_started_at, None, o.reason, o.created_at, o.created_by, o.ended_at,
        )  # fmt: skip
        for step in o.history:
            await self._add_step(o, step)
        return o

    async def _add_step(self, o: Rollout, step: RolloutStep) -> None:
        await self._conn.execute(
            sql.INSERT_ROLLOUT_STEP, o.model, o.number, o.progress.step, step.state, step.challenger_percent, step.entered_at, step.reason,
            step.evidence,
        )  # fmt: skip

    async def rollout(self, model: str, number: int) -> Rollout | None:
        row = await self._conn.fetchrow(sql.SELECT_ROLLOUT, model, number)
        return None if row is None else rows.rollout(row)

    async def active_rollout(self, model: str) -> Rollout | None:
        row = await self._conn.fetchrow(sql.SELECT_ACTIVE_ROLLOUT, model)
        return None if row is None else rows.rollout(row)

    async def rollouts(self, model: str, before: int, limit: int) -> list[Rollout]:
        return [rows.rollout(row) for row in await self._conn.fetch(sql.LIST_ROLLOUTS, model, before, limit)]

    async def undecided_rollouts(self) -> list[Rollout]:
        return [rows.rollout(row) for row in await self._conn.fetch(sql.LIST_ACTIVE_ROLLOUTS)]

    async def change_rollout(self, rollout: Rollout, step: RolloutStep) -> None:
        at = rollout.progress
        await self._conn.execute(
            sql.UPDATE_ROLLOUT, rollout.model, rollout.number, at.state.value, at.resume_to.value if at.resume_to else None, at.step,
            at.challenger_percent, rollout.step_started_at, rollout.last_decision.value if rollout.last_decision else None,
            rollout.reason, rollout.ended_at,
        )  # fmt: skip
        await self._add_step(rollout, step)

    async def note_hold(self, rollout: Rollout, progress: Progress) -> None:
        await self._conn.execute(
            sql.NOTE_HOLD,
            rollout.model,
            rollout.number,
            progress.step,
            rollout.reason,
            rollout.step_started_at,
        )

    async def routing(self, model: str) -> Routing:
        row = await self._conn.fetchrow(sql.SELECT_ROUTING, model)
        return Routing() if row is None else rows.routing(row)

    async def set_routing(self, model: str, routing: Routing) -> None:
        await self._conn.execute(
            sql.UPSERT_ROUTING, model, routing.generation, routing.champion, routing.challenger, routing.rollout, routing.shadow_percent,
            routing.challenger_percent,
        )  # fmt: skip
        await self._conn.execute(sql.NOTIFY_SERVING, model)

    async def spans(self, model: str) -> list[Span]:
        return [rows.span(row) for row in await self._conn.fetch(sql.ALL_SPANS, model)]

    async def page_of_spans(self, model: str, before: int, limit: int) -> list[tuple[int, Span]]:
        return [
            (row["position"], rows.span(row))
            for row in await self._conn.fetch(sql.LIST_SPANS, model, before, limit)
        ]

    async def begin_span(self, model: str, span: Span) -> None:
        await self._conn.execute(sql.CLOSE_SPAN, model, span.since)
        await self._conn.execute(
            sql.OPEN_SPAN, model, span.release, span.version, span.since, span.reason, span.by_rollback
        )
