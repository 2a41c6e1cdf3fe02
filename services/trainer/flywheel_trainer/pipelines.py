"""Pipeline runs as people see them: what was asked for, how far it is, what came out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from flywheel_common.clock import Clock
from flywheel_common.errors import InvalidArgument, NotFound
from flywheel_common.ids import Ids
from flywheel_common.paging import Page
from flywheel_trainer.jobs import ENDED, JobState, TrainSpec, check_spec
from flywheel_trainer.names import ModelName, PipelineRunName
from flywheel_trainer.recipes.tabular.spec import Hyperparameters

STEPS = ("training_set", "train", "evaluate", "register", "release", "rollout")


@dataclass(frozen=True)
class PipelineSpec:
    """How a model is made and brought in. `spine` and `fallback` are the peers' own messages as JSON, passed on."""

    model: str
    feature_set: str
    spine: Mapping[str, Any]
    train: TrainSpec
    threshold: float = 0.0
    fallback: Mapping[str, Any] | None = None
    segment_keys: tuple[str, ...] = ()
    start_rollout: bool = False

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> PipelineSpec:
        """What `asdict` made of it, back."""
        train = dict(row["train"])
        hyper = dict(train.pop("hyperparameters"))
        hyper["hidden_sizes"] = tuple(hyper["hidden_sizes"])
        spec = TrainSpec(**train, hyperparameters=Hyperparameters(**hyper))
        return cls(**{**row, "train": spec, "segment_keys": tuple(row["segment_keys"])})


@dataclass(frozen=True)
class Step:
    """One step; `output` names the resource it made, `message` says in one line how it went."""

    step: str
    state: JobState = JobState.QUEUED
    started_at: datetime | None = None
    ended_at: datetime | None = None
    output: str = ""
    message: str = ""


@dataclass(frozen=True)
class PipelineRun:
    """One durable run. `event_time` orders its events: the drift window's end, or the wall clock for a start by hand."""

    name: PipelineRunName
    spec: PipelineSpec
    event_time: datetime
    state: JobState = JobState.QUEUED
    steps: tuple[Step, ...] = field(default_factory=lambda: tuple(Step(step) for step in STEPS))
    training_set: str = ""
    run: str = ""
    model_version: str = ""
    release: str = ""
    rollout: str = ""
    gate_passed: bool = False
    error_reason: str = ""
    error_message: str = ""
    cause_alert: str = ""
    cancel_requested: bool = False
    created_at: datetime | None = None
    ended_at: datetime | None = None


class PipelineStore(Protocol):
    """Keeps pipeline runs. `create` is idempotent by request_id. `begin_step`, `note`, `end_step` and `finish` may be
    repeated after a crash: they write the same rows again. `note` and `end_step` set fields of the run (`facts`).
    `finish` ends a run that has not ended, closes its open steps and puts `training.completed` into the outbox, in one
    transaction. `unfinished` are the runs to be driven."""

    async def create(self, run: PipelineRun, request_id: str, body: bytes, now: datetime) -> PipelineRun: ...

    async def get(self, name: PipelineRunName) -> PipelineRun | None: ...

    async def list(self, project: str, size: int, token: str) -> Page[PipelineRun]: ...

    async def unfinished(self) -> Sequence[PipelineRunName]: ...

    async def request_cancel(self, name: PipelineRunName) -> PipelineRun: ...

    async def begin_step(self, name: PipelineRunName, step: str, now: datetime) -> None: ...

    async def note(self, name: PipelineRunName, facts: Mapping[str, Any]) -> None: ...

    async def end_step(
        self,
        name: PipelineRunName,
        step: str,
        output: str,
        message: str,
        facts: Mapping[str, Any],
        now: datetime,
    ) -> None: ...

    async def finish(
        self, name: PipelineRunName, state: JobState, reason: str, message: str, now: datetime
    ) -> None: ...


class Pipelines:
    """Use cases of pipeline runs; the work itself is `pipeline`'s."""

    def __init__(self, store: PipelineStore, ids: Ids, clock: Clock) -> None:
        self._store, self._ids, self._clock = store, ids, clock

    async def start(self, project: str, spec: PipelineSpec, request_id: str, body: bytes) -> PipelineRun:
        """Accept a run; it is driven from here on whatever happens to this process. InvalidArgument INVALID_SPEC."""
        check_pipeline(spec, project)
        now = self._clock.now()
        run = PipelineRun(PipelineRunName(project, f"pipe-{self._ids.new()}"), spec, event_time=now)
        return await self._store.create(run, request_id, body, now)

    async def get(self, name: PipelineRunName) -> PipelineRun:
        """Raises NotFound UNKNOWN_PIPELINE_RUN."""
        run = await self._store.get(name)
        if run is None:
            raise unknown_pipeline_run(name)
        return run

    async def list(self, project: str, size: int, token: str) -> Page[PipelineRun]:
        return await self._store.list(project, size, token)

    async def cancel(self, name: PipelineRunName) -> PipelineRun:
        """Ask for the end after the step in progress; a training job in progress is stopped. FailedPrecondition
        PIPELINE_RUN_ENDED."""
        return await self._store.request_cancel(name)

    async def watch(self, name: PipelineRunName, poll_seconds: float) -> AsyncIterator[PipelineRun]:
        """The run now and at every change, until it has ended."""
        last: PipelineRun | None = None
        while True:
            run = await self.get(name)
            if run != last:
                yield run
            if run.state in ENDED:
                return
            last = run
            await asyncio.sleep(poll_seconds)


def check_pipeline(spec: PipelineSpec, project: str) -> None:
    """Raises InvalidArgument INVALID_SPEC or INVALID_NAME naming the field."""
    if ModelName.parse(spec.model).project != project:
        raise InvalidArgument("model belongs to another project.", reason="INVALID_SPEC", field="spec.model")
    if "/featureSets/" not in spec.feature_set:
        raise InvalidArgument(
            "feature_set names a feature set: projects/{project}/featureSets/{set}[/versions/{version}].",
            reason="INVALID_SPEC",
            field="spec.feature_set",
        )
    if not spec.spine:
        raise InvalidArgument(
            "spine says which rows to learn from: set source or file.",
            reason="INVALID_SPEC",
            field="spec.spine",
        )
    if not 0 <= spec.threshold <= 1:
        raise InvalidArgument("threshold is between 0 and 1.", reason="INVALID_SPEC", field="spec.threshold")
    filled = TrainSpec(**{**spec.train.__dict__, "training_set": "set by the pipeline"})
    check_spec(filled)


def unknown_pipeline_run(name: PipelineRunName) -> NotFound:
    return NotFound(
        f"Pipeline run {str(name)!r} does not exist.", reason="UNKNOWN_PIPELINE_RUN", pipeline_run=name
    )
