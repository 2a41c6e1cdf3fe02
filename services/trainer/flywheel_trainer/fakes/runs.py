"""`RunStore` in memory."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from flywheel_common.paging import Key, Page, cut, decode_token
from flywheel_job.outcome import MetricPoint
from flywheel_trainer.fakes.tracking import MemoryTracking
from flywheel_trainer.runs.errors import ExperimentExists
from flywheel_trainer.runs.filter_terms import Term
from flywheel_trainer.runs.lease import LOST_MESSAGE, has_expired
from flywheel_trainer.runs.metric_points import LoggedPoints
from flywheel_trainer.runs.run import Experiment, Run, RunName, RunState, RunUpdate
from flywheel_trainer.runs.search import Order, rank

_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FIRST_STEP = -(2**63)


class MemoryRuns:
    """`RunStore` over a `MemoryTracking`."""

    def __init__(self, tracking: MemoryTracking) -> None:
        self._tracking = tracking
        self._requests = tracking.requests

    async def create_experiment(
        self, experiment: Experiment, request_id: str, body: bytes, now: datetime
    ) -> Experiment:
        self._requests.replay("CreateExperiment", request_id, body)
        created = replace(experiment, created_at=now)
        stored = self._tracking.experiments.setdefault(experiment.name, created)
        if (stored.description, stored.tags) != (experiment.description, experiment.tags):
            raise ExperimentExists.of(experiment.name)
        self._requests.store("CreateExperiment", request_id, body, experiment.name)
        return stored

    async def list_experiments(self, project: str, size: int, token: str) -> Page[Experiment]:
        (after,) = decode_token(token, query=project) or [""]
        found = [e for e in self._tracking.experiments.values() if e.name.project == project]
        rows = sorted((e for e in found if e.name.experiment > str(after)), key=lambda e: e.name.experiment)
        return cut(rows[: size + 1], size, lambda e: (e.name.experiment,), query=project)

    async def create_run(self, run: Run, request_id: str, body: bytes, now: datetime) -> Run:
        first = self._requests.replay("CreateRun", request_id, body)
        if first is not None:
            return self._tracking.runs[first].run
        started = self._tracking.add_run(run, now)
        self._requests.store("CreateRun", request_id, body, run.name)
        return started

    async def get_run(self, name: RunName) -> Run | None:
        record = self._tracking.runs.get(name)
        return record.run if record else None

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
        found = [r.run for r in self._tracking.runs.values() if r.run.name.project == project]
        found = sorted((r for r in found if all(_matches(r, t) for t in terms)), key=key, reverse=descending)
        if after:
            last: tuple[Key, ...] = (float(str(after[0])), after[1]) if order else (after[0],)
            compare = operator.lt if descending else operator.gt
            found = [r for r in found if compare(key(r), last)]
        return cut(found[: size + 1], size, lambda r: tuple(map(str, key(r))), query=query)

    async def log(
        self, name: RunName, points: Sequence[MetricPoint], now: datetime, attempt: str = ""
    ) -> LoggedPoints:
        number = self._tracking.check_attempt(attempt, name) if attempt else 0
        record = self._tracking.running(name)
        record.heartbeat = now
        return record.add(points, number)

    async def points(self, name: RunName, key: str, size: int, token: str) -> Page[MetricPoint]:
        query = f"{name}?{key}"
        after = decode_token(token, query=query) or ["", _FIRST_STEP]
        record = self._tracking.runs.get(name)
        points = record.points if record else {}
        last = str(after[0]), int(str(after[1]))
        rows = [points[p] for p in sorted(points) if key in ("", p[0]) and p > last]
        return cut(rows[: size + 1], size, lambda p: (p.key, p.step), query=query)

    async def update(
        self, name: RunName, update: RunUpdate, now: datetime, request_id: str = "", body: bytes = b""
    ) -> Run:
        if self._requests.replay("UpdateRun", request_id, body) is not None:
            return self._tracking.runs[name].run
        record = self._tracking.running(name)
        record.heartbeat = now
        record.run = replace(
            record.run,
            params={**update.params, **record.run.params},
            tags={**record.run.tags, **update.tags},
            artifacts=(*record.run.artifacts, *update.artifacts),
        )
        if update.state is not None:
            record.run = replace(
                record.run, state=update.state, error_message=update.error_message, ended_at=now
            )
        self._requests.store("UpdateRun", request_id, body, name)
        return record.run

    async def expire(self, now: datetime, not_before: datetime) -> list[str]:
        expired = [
            record
            for record in self._tracking.runs.values()
            if record.run.state is RunState.RUNNING
            and not self._tracking.has_active_job(record.run.name)
            and has_expired(record.heartbeat, record.run.lease_seconds, now, not_before)
        ]
        for record in expired:
            record.run = replace(record.run, state=RunState.LOST, ended_at=now, error_message=LOST_MESSAGE)
        return [str(record.run.name) for record in expired]


def _matches(run: Run, term: Term) -> bool:
    compare = _COMPARE[term.operator]
    if term.field == "metrics":
        value = run.metrics.get(term.key, math.nan)
        return not math.isnan(value) and compare(value, term.value)
    if term.field in ("params", "tags"):
        entries: Mapping[str, str] = getattr(run, term.field)
        return compare(entries.get(term.key), term.value)
    if term.field == "parent_run":
        return compare(run.parent_run.rpartition("/")[2], term.value)
    return compare(str(getattr(run, term.field)), term.value)
