"""Rollouts in PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from flywheel_registry.rollouts.rollout import Rollout, RolloutStep
from flywheel_registry.rollouts.state_machine import Progress
from flywheel_registry.store.postgres import rows
from flywheel_registry.store.postgres import statements as sql
from flywheel_registry.store.postgres.models import PostgresModels


class PostgresRollouts(PostgresModels):
    """Part of `PostgresRecords`: rollouts."""

    async def add_rollout(self, rollout: Rollout) -> Rollout:
        added = replace(rollout, number=await self._next_number(rollout.model, "rollout"))
        progress = added.progress
        await self._conn.execute(
            sql.INSERT_ROLLOUT,
            added.model,
            added.number,
            added.champion,
            added.challenger,
            progress.state.value,
            None,
            progress.step,
            progress.challenger_percent,
            rows.policy_to_json(added.policy),
            added.step_started_at,
            None,
            added.reason,
            added.created_at,
            added.created_by,
            added.ended_at,
            added.generation,
            added.step_entered_at,
            added.step_ran_seconds,
        )
        for step in added.history:
            await self._add_step(added, step)
        return added

    async def _add_step(self, rollout: Rollout, step: RolloutStep) -> None:
        await self._conn.execute(
            sql.INSERT_ROLLOUT_STEP,
            rollout.model,
            rollout.number,
            rollout.progress.step,
            step.state,
            step.challenger_percent,
            step.entered_at,
            step.reason,
            step.evidence,
        )

    async def rollout(self, model: str, number: int) -> Rollout | None:
        row = await self._conn.fetchrow(sql.SELECT_ROLLOUT, model, number)
        return None if row is None else rows.rollout(row)

    async def active_rollout(self, model: str) -> Rollout | None:
        row = await self._conn.fetchrow(sql.SELECT_ACTIVE_ROLLOUT, model)
        return None if row is None else rows.rollout(row)

    async def rollouts(self, model: str, before: int, limit: int) -> list[Rollout]:
        return [rows.rollout(row) for row in await self._conn.fetch(sql.LIST_ROLLOUTS, model, before, limit)]

    async def paused_rollouts(self, at: datetime) -> list[Rollout]:
        return [rows.rollout(row) for row in await self._conn.fetch(sql.LIST_PAUSED_ROLLOUTS, at)]

    async def undecided_rollouts(self) -> list[Rollout]:
        return [rows.rollout(row) for row in await self._conn.fetch(sql.LIST_UNDECIDED_ROLLOUTS)]

    async def change_rollout(self, rollout: Rollout, step: RolloutStep) -> None:
        progress, decision = rollout.progress, rollout.last_decision
        await self._conn.execute(
            sql.UPDATE_ROLLOUT,
            rollout.model,
            rollout.number,
            progress.state.value,
            progress.resume_to.value if progress.resume_to else None,
            progress.step,
            progress.challenger_percent,
            rollout.step_started_at,
            decision.value if decision else None,
            rollout.reason,
            rollout.ended_at,
            rollout.generation,
            rollout.step_entered_at,
            rollout.step_ran_seconds,
            rollout.alerted_at,
            rollout.evidence_count,
            rollout.evidence_grew_at,
        )
        await self._add_step(rollout, step)

    async def note_alert(self, rollout: Rollout) -> None:
        await self._conn.execute(sql.NOTE_ALERT, rollout.model, rollout.number, rollout.alerted_at)

    async def note_hold(self, rollout: Rollout, progress: Progress) -> None:
        await self._conn.execute(
            sql.NOTE_HOLD,
            rollout.model,
            rollout.number,
            progress.step,
            rollout.reason,
            rollout.step_started_at,
            rollout.alerted_at,
            rollout.evidence_count,
            rollout.evidence_grew_at,
        )
