"""Experiments in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from flywheel_common.paging import Page, cut, decode_token
from flywheel_common.postgres.pool import Connection
from flywheel_monitor.experiments.errors import (
    ExperimentConcluded,
    ExperimentExists,
    TooManyExperiments,
    UnknownExperiment,
)
from flywheel_monitor.experiments.experiment import (
    MAX_RUNNING,
    Declaration,
    Experiment,
    ExperimentState,
    ExperimentVerdict,
)
from flywheel_monitor.experiments.tally import Subject, SubjectEvent, Tally
from flywheel_monitor.models.names import ExperimentName

_LOCK_MODEL = """
INSERT INTO model (name, project) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET name = excluded.name
RETURNING id
"""
_RUNNING_COUNT = "SELECT count(*) FROM experiment WHERE model_id = $1 AND state = 1"
_ADD = """
INSERT INTO experiment (model_id, name, declaration, tally, created_by) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (name) DO NOTHING RETURNING *
"""
_GET = "SELECT * FROM experiment WHERE name = $1"
_LIST = """
SELECT e.* FROM experiment e JOIN model m ON m.id = e.model_id
WHERE m.name = $1 AND ($2::bigint IS NULL OR e.id < $2)
    AND ($4 = '' OR e.declaration->'treatment'->>'release' = $4)
ORDER BY e.id DESC LIMIT $3
"""
_CONCLUDE = """
UPDATE experiment SET state = 2, concluded_at = now(), verdict = $2, reason = $3, concluded_by = $4
WHERE name = $1 AND state = 1 RETURNING *
"""
_RUNNING = """
SELECT e.* FROM experiment e JOIN model m ON m.id = e.model_id WHERE m.name = $1 AND e.state = 1 ORDER BY e.id
"""
_TAKE = """
WITH oldest AS (SELECT id FROM experiment_event ORDER BY id LIMIT $1 FOR UPDATE)
DELETE FROM experiment_event e USING oldest o, variant t, model m
WHERE e.id = o.id AND t.id = e.variant_id AND m.id = e.model_id
RETURNING e.id, m.name AS model, t.rollout, t.release, t.generation, e.subject, e.event_time, e.arrived_at,
    e.name, e.value, e.latency_ms, e.failed, e.cost
"""
_SUBJECTS = """
SELECT subject, arm, amounts FROM experiment_subject WHERE experiment_id = $1 AND subject = ANY($2::text[])
"""
_STORE_TALLY = "UPDATE experiment SET tally = $2 WHERE id = $1"
_STORE_SUBJECTS = """
INSERT INTO experiment_subject (experiment_id, subject, arm, amounts)
SELECT $1, * FROM unnest($2::text[], $3::smallint[], $4::jsonb[])
ON CONFLICT (experiment_id, subject) DO UPDATE SET arm = excluded.arm, amounts = excluded.amounts
"""
_FORGET = """
WITH gone AS (
    DELETE FROM experiment_subject WHERE ctid IN (
        SELECT s.ctid FROM experiment_subject s JOIN experiment e ON e.id = s.experiment_id
        WHERE e.state = 2 LIMIT $1
    ) RETURNING 1
)
SELECT count(*) FROM gone
"""


class ExperimentRows:
    """`ExperimentCounts` on the transaction's connection."""

    _conn: Connection

    async def add_experiment(self, name: ExperimentName, declaration: Declaration, by: str) -> Experiment:
        # The row of the model is locked, so that two calls do not both count MAX_RUNNING - 1.
        model_id = await self._conn.fetchval(_LOCK_MODEL, name.model_name, name.project)
        if await self._conn.fetchval(_RUNNING_COUNT, model_id) >= MAX_RUNNING:
            raise TooManyExperiments(f"{name.model_name} has {MAX_RUNNING} running experiments.")
        tally = json.dumps(Tally.empty(len(declaration.metrics)).to_json())
        stored = json.dumps(declaration.to_json())
        row = await self._conn.fetchrow(_ADD, model_id, str(name), stored, tally, by)
        if row is None:
            raise ExperimentExists(f"{name} exists already.")
        return _experiment(row)

    async def experiment(self, name: ExperimentName) -> tuple[Experiment, Tally]:
        row = await self._conn.fetchrow(_GET, str(name))
        if row is None:
            raise UnknownExperiment(f"There is no experiment {name}.")
        return _with_tally(row)

    async def experiments(self, model: str, size: int, token: str, treatment: str = "") -> Page[Experiment]:
        query = f"{model} {treatment}".strip()
        key = decode_token(token, query=query)
        rows = await self._conn.fetch(_LIST, model, key[0] if key else None, size + 1, treatment)
        page = cut(rows, size, lambda r: [r["id"]], query=query)
        return Page([_experiment(r) for r in page.items], page.next_page_token)

    async def conclude_experiment(
        self, name: ExperimentName, verdict: ExperimentVerdict, reason: str, by: str
    ) -> Experiment:
        row = await self._conn.fetchrow(_CONCLUDE, str(name), int(verdict), reason, by)
        if row is None:
            await self.experiment(name)
            raise ExperimentConcluded(f"{name} was concluded before.")
        return _experiment(row)

    async def running_experiments(self, model: str) -> list[tuple[Experiment, Tally]]:
        return [_with_tally(r) for r in await self._conn.fetch(_RUNNING, model)]

    async def take_events(self, limit: int) -> list[SubjectEvent]:
        rows = await self._conn.fetch(_TAKE, limit)
        return [_event(r) for r in sorted(rows, key=lambda r: r["id"])]

    async def lock_experiments(self, model: str) -> list[tuple[Experiment, Tally]]:
        return [_with_tally(r) for r in await self._conn.fetch(_RUNNING + " FOR UPDATE OF e", model)]

    async def subjects(self, experiment_id: int, subjects: Collection[str]) -> dict[str, Subject]:
        rows = await self._conn.fetch(_SUBJECTS, experiment_id, list(subjects))
        return {r["subject"]: Subject(r["arm"], json.loads(r["amounts"])) for r in rows}

    async def store_tally(self, experiment_id: int, tally: Tally, subjects: Mapping[str, Subject]) -> None:
        await self._conn.execute(_STORE_TALLY, experiment_id, json.dumps(tally.to_json()))
        names = sorted(subjects)
        arms = [subjects[s].arm for s in names]
        amounts = [json.dumps(subjects[s].amounts) for s in names]
        await self._conn.execute(_STORE_SUBJECTS, experiment_id, names, arms, amounts)

    async def forget_subjects(self, limit: int) -> int:
        return int(await self._conn.fetchval(_FORGET, limit))


def _with_tally(row: Mapping[str, Any]) -> tuple[Experiment, Tally]:
    return _experiment(row), Tally.from_json(json.loads(row["tally"]))


def _experiment(row: Mapping[str, Any]) -> Experiment:
    return Experiment(
        id=row["id"],
        name=row["name"],
        declaration=Declaration.from_json(json.loads(row["declaration"])),
        created_at=row["created_at"],
        created_by=row["created_by"],
        state=ExperimentState(row["state"]),
        concluded_at=row["concluded_at"],
        concluded_by=row["concluded_by"],
        verdict=ExperimentVerdict(row["verdict"]),
        reason=row["reason"],
    )


def _event(row: Mapping[str, Any]) -> SubjectEvent:
    return SubjectEvent(
        row["model"],
        row["rollout"],
        row["release"],
        row["generation"],
        row["subject"],
        row["event_time"],
        row["arrived_at"],
        row["name"],
        row["value"],
        row["latency_ms"],
        row["failed"],
        row["cost"],
    )
