"""`runs.RunStore` and `jobs.JobStore` in memory, for unit tests of the use cases. Held to the same contract suite as PostgreSQL.
Pipelines and policies are in `memory_pipelines`."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from flywheel_common.errors import AlreadyExists
from flywheel_common.paging import Key, Page, cut, decode_token
from flywheel_trainer.fakes.tracking import MemoryTracking
from flywheel_trainer.recipes.outcome import MetricPoint
from flywheel_trainer.runs.run import Experiment, Run, RunName, RunState, RunUpdate
from flywheel_trainer.runs.search import Order, Term, rank

_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_FIRST_STEP = -(2**63)


class MemoryRuns:
    """`runs.RunStore`."""

    def __init__(self, tracking: MemoryTracking) -> None:
        self._held = tracking

    async def create_experiment(
        self, experiment: Experiment, request_id: str, body: bytes, now: datetime
    ) -> Experiment:
        self._held.replay("CreateExperiment", request_id, body)
        stored = self._held.experiments.setdefault(experiment.name, replace(experiment, created_at=now))
        if (stored.description, stored.tags) != (experiment.description, experiment.tags):
            raise AlreadyExists(
                f"Experiment {str(experiment.name)!r} exists with another description or tags.",
                reason="EXPERIMENT_EXISTS",
            )
        self._held.answered("CreateExperiment", request_id, body, experiment.name)
        return stored

    async def list_experiments(self, project: str, size: int, token: str) -> Page[Experiment]:
        (after,) = decode_token(token, query=project) or [""]
        mine = [e for e in self._held.experiments.values() if e.name.project == project]
        rows = sorted((e for e in mine if e.name.experiment > str(after)), key=lambda e: e.name.experiment)
        return cut(rows[: size + 1], size, lambda e: (e.name.experiment,), query=project)

    async def create_run(self, run: Run, request_id: str, body: bytes, now: datetime) -> Run:
        first = self._held.replay("CreateRun", request_id, body)
        if first is not None:
            return self._held.runs[first].run
        started = self._held.add_run(run, now)
        self._held.answered("CreateRun", request_id, body, run.name)
        return started

    async def get_run(self, name: RunName) -> Run | None:
        held = self._held.runs.get(name)
        return held.run if held else None

    async def list_runs(
        self, project: str, terms: Sequence[Term], order: Order | None, size: int, token: str
    ) -> Page[Run]:
        query = repr((project, terms, order))
        after = decode_token(token, query=query)

        def key(run: Run) -> tuple[Key, ...]:
            if order is None:
                return (run.name.run,)
            return (rank(run, order), run.name.run)

        descending = order is None or order.descending
        found = [h.run for h in self._held.runs.values() if h.run.name.project == project]
        found = sorted((r for r in found if all(_fits(r, t) for t in terms)), key=key, reverse=descending)
        if after:
            last: tuple[Key, ...] = (float(str(after[0])), after[1]) if order else (after[0],)
            compare = operator.lt if descending else operator.gt
            found = [r for r in found if compare(key(r), last)]
        return cut(found[: size + 1], size, lambda r: tuple(map(str, key(r))), query=query)

    async def log(self, name: RunName, points: Sequence[MetricPoint], now: datetime) -> int:
        held = self._held.running(name)
        held.heartbeat = now
        return held.add(points)

    async def points(self, name: RunName, key: str, size: int, token: str) -> Page[MetricPoint]:
        query = f"{name}?{key}"
        after = decode_token(token, query=query) or ["", _FIRST_STEP]
        held = self._held.runs.get(name)
        mine = sorted(held.points) if held else []
        last = str(after[0]), int(str(after[1]))
        rows = [held.points[p] for p in mine if held and key in ("", p[0]) and p > last]
        return cut(rows[: size + 1], size, lambda p: (p.key, p.step), query=query)

    async def update(self, name: RunName, update: RunUpdate, now: datetime) -> Run:
        held = self._held.running(name)
        held.heartbeat = now
        held.run = replace(
            held.run, params={**update.params, **held.run.params}, tags={**held.run.tags, **update.tags},
            artifacts=(*held.run.artifacts, *update.artifacts),
        )  # fmt: skip
        if update.state is not None:
            held.run = replace(held.run, state=update.state, error_message=update.error_message, ended_at=now)
        return held.run

    async def expire(self, now: datetime, not_before: datetime) -> list[str]:
        silent = [
            h
            for h in self._held.runs.values()
            if h.run.state is RunState.RUNNING
            and max(h.heartbeat, not_before) + timedelta(seconds=h.run.lease_seconds) < now
        ]
        for held in silent:
            held.run = replace(
                held.run, state=RunState.LOST, ended_at=now, error_message="no heartbeat within its lease"
            )
        return [str(h.run.name) for h in silent]


def _fits(run: Run, term: Term) -> bool:
    compare = _COMPARE[term.operator]
    if term.field == "metrics":
        value = run.metrics.get(term.key, math.nan)
        return not math.isnan(value) and compare(value, term.value)
    if term.field in ("params", "tags"):
        held: Mapping[str, str] = getattr(run, term.field)
        return compare(held.get(term.key), term.value)
    return compare(str(getattr(run, term.field)), term.value)
