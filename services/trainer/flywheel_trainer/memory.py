"""`runs.RunStore` and `jobs.JobStore` in memory, for unit tests of the use cases. Held to the same contract suite as PostgreSQL.
Pipelines and policies are in `memory_pipelines`."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from flywheel_common.context import current_principal
from flywheel_common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from flywheel_common.paging import Key, Page, cut, decode_token
from flywheel_trainer.jobs import ENDED, Job, JobState, TrainingSet, unknown_job
from flywheel_trainer.names import ExperimentName, JobName, RunName
from flywheel_trainer.recipes.outcome import MetricPoint, Outcome
from flywheel_trainer.run_query import Order, Term
from flywheel_trainer.runs import Experiment, Run, RunState, RunUpdate, rank, unknown_run

A = TypeVar("A")
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_FIRST_STEP = -(2**63)


@dataclass
class _HeldRun:
    run: Run
    heartbeat: datetime
    points: dict[tuple[str, int], MetricPoint] = field(default_factory=dict)

    def add(self, points: Sequence[MetricPoint]) -> int:
        """The first value of a (key, step) stays; a run's metric is that of its highest step."""
        before = len(self.points)
        for point in points:
            self.points.setdefault((point.key, point.step), point)
        newest = {key: self.points[key, step].value for key, step in sorted(self.points)}
        self.run = replace(self.run, metrics=newest)
        return len(self.points) - before


class MemoryRequests:
    """Request ids that were seen, with what they named."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str, str], tuple[bytes, Any]] = {}

    def replay(self, method: str, request_id: str, body: bytes) -> Any:
        """The first answer to an equal request, None when there was none."""
        stored = self._answers.get((current_principal().subject, method, request_id)) if request_id else None
        if stored is None:
            return None
        if stored[0] != body:
            raise InvalidArgument(
                f"request_id {request_id!r} was used with another request body.", reason="REQUEST_ID_REUSED"
            )
        return stored[1]

    def once(self, method: str, request_id: str, body: bytes, make: Callable[[], A]) -> A:
        """The first answer to an equal request; what `make` answers when there was none."""
        first: A | None = self.replay(method, request_id, body)
        return self.answered(method, request_id, body, make()) if first is None else first

    def answered(self, method: str, request_id: str, body: bytes, name: A) -> A:
        if request_id:
            self._answers[current_principal().subject, method, request_id] = body, name
        return name


class MemoryTracking(MemoryRequests):
    """What runs and jobs share: a job and its run are made and ended together."""

    def __init__(self) -> None:
        super().__init__()
        self.experiments: dict[ExperimentName, Experiment] = {}
        self.runs: dict[RunName, _HeldRun] = {}
        self.jobs: dict[JobName, tuple[Job, Mapping[str, Any]]] = {}

    def add_run(self, run: Run, now: datetime) -> Run:
        if ExperimentName(run.name.project, run.experiment) not in self.experiments:
            raise NotFound(
                f"Experiment {run.experiment!r} does not exist: create it first.", reason="UNKNOWN_EXPERIMENT"
            )
        started = replace(run, state=RunState.RUNNING, started_at=now)
        self.runs[run.name] = _HeldRun(started, now)
        return started

    def running(self, name: RunName) -> _HeldRun:
        held = self.runs.get(name)
        if held is None:
            raise unknown_run(name)
        if held.run.state is not RunState.RUNNING:
            raise FailedPrecondition(
                f"Run {str(name)!r} has ended as {held.run.state}: start a new one.",
                reason="RUN_ENDED",
                state=held.run.state,
            )
        return held


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


class MemoryJobs:
    """`jobs.JobStore`."""

    def __init__(self, tracking: MemoryTracking) -> None:
        self._held = tracking

    def _change(self, name: JobName, states: Sequence[JobState], **changes: Any) -> Job | None:
        job, details = self._held.jobs.get(name, (None, {}))
        if job is None or job.state not in states:
            return None
        self._held.jobs[name] = replace(job, **changes), details
        return self._held.jobs[name][0]

    async def create(
        self, job: Job, details: Mapping[str, Any], request_id: str, body: bytes, now: datetime
    ) -> Job:
        known = await self.by_request(request_id, body)
        if known is not None:
            return known
        run = Run(job.run, job.spec.experiment, training_set=job.spec.training_set, job=str(job.name))
        self._held.add_run(run, now)
        self._held.jobs[job.name] = replace(job, state=JobState.QUEUED, created_at=now), dict(details)
        self._held.answered("SubmitJob", request_id, body, job.name)
        return self._held.jobs[job.name][0]

    async def by_request(self, request_id: str, body: bytes) -> Job | None:
        first = self._held.replay("SubmitJob", request_id, body)
        return None if first is None else self._held.jobs[first][0]

    async def get(self, name: JobName) -> Job | None:
        found = self._held.jobs.get(name)
        return found[0] if found else None

    async def list(self, project: str, size: int, token: str) -> Page[Job]:
        (after,) = decode_token(token, query=project) or [""]
        mine = [j for j, _ in self._held.jobs.values() if j.name.project == project]
        rows = sorted(
            (j for j in mine if not after or j.name.job < str(after)), key=lambda j: j.name.job, reverse=True
        )
        return cut(rows[: size + 1], size, lambda j: (j.name.job,), query=project)

    async def request_cancel(self, name: JobName, request_id: str = "", body: bytes = b"") -> Job:
        if self._held.replay("CancelJob", request_id, body) is not None:
            return self._held.jobs[name][0]
        job = await self.get(name)
        if job is None:
            raise unknown_job(name)
        if job.state in ENDED:
            raise FailedPrecondition(f"Job {str(name)!r} has ended as {job.state}.", reason="JOB_ENDED")
        self._held.jobs[name] = replace(job, cancel_requested=True), self._held.jobs[name][1]
        self._held.answered("CancelJob", request_id, body, name)
        return self._held.jobs[name][0]

    async def active(self) -> Sequence[tuple[Job, Mapping[str, Any]]]:
        alive = [(j, d) for j, d in self._held.jobs.values() if j.state not in ENDED]
        return sorted(alive, key=lambda jd: (-jd[0].priority, jd[0].created_at))

    async def started(self, name: JobName, now: datetime) -> None:
        self._change(name, [JobState.QUEUED], state=JobState.RUNNING, started_at=now)

    async def waits(self, name: JobName, message: str) -> None:
        job = await self.get(name)
        if job is not None:
            progress = {**job.progress, "message": message}
            self._change(name, [JobState.QUEUED, JobState.RUNNING], progress=progress)

    async def alive(self, name: JobName, progress: Mapping[str, Any], now: datetime) -> None:
        self._change(name, [JobState.RUNNING], progress=dict(progress))
        job = await self.get(name)
        held = self._held.runs.get(job.run) if job else None
        if held is not None and held.run.state is RunState.RUNNING:
            held.heartbeat = now

    async def end(self, name: JobName, state: JobState, outcome: Outcome, now: datetime) -> bool:
        ended = self._change(
            name, [JobState.QUEUED, JobState.RUNNING], state=state, error_reason=outcome.error_reason,
            error_message=outcome.error_message, ended_at=now,
        )  # fmt: skip
        if ended is None:
            return False
        held = self._held.runs[ended.run]
        held.add(outcome.points)
        if held.run.state in (RunState.RUNNING, RunState.LOST):
            held.run = replace(
                held.run, params={**held.run.params, **outcome.params}, artifacts=outcome.artifacts,
                code_version=outcome.code_version, environment=outcome.environment, state=RunState(state),
                error_message=outcome.error_message, ended_at=held.run.ended_at or now,
            )  # fmt: skip
        return True

    async def progress(self, run: RunName) -> int:
        held = self._held.runs.get(run)
        return max((step for key, step in held.points if key == "train_loss"), default=0) if held else 0


class MemoryTrainingSets:
    """`jobs.TrainingSets` out of a dictionary."""

    def __init__(self) -> None:
        self.known: dict[str, TrainingSet] = {}

    async def get(self, name: str) -> TrainingSet:
        if name not in self.known:
            raise NotFound(f"Training set {name!r} does not exist.", reason="UNKNOWN_TRAINING_SET")
        return self.known[name]
