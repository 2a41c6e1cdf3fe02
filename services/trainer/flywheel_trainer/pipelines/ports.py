"""Ports of pipelines: their store, the feature service, the registry."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from flywheel_common.paging import Page
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.jobs.ports import TrainingSets
from flywheel_trainer.pipelines.pipeline_run import Approval, PipelineRun, PipelineRunName
from flywheel_trainer.runs.filter_terms import Term


@dataclass(frozen=True)
class Ended:
    """How a step ended."""

    state: JobState
    output: str = ""
    message: str = ""
    outputs: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    reused_from: str = ""


class PipelineStore(Protocol):
    """Stores pipeline runs. Every method is one transaction; the caller passes the time.

    - `create`, `request_cancel` and `decide` are idempotent by request_id: a repeated request returns the
      run as it is now, and another body raises RequestIdReused. `request_cancel` raises UnknownPipelineRun,
      PipelineRunEnded.
    - `decide` stores the decision on a RUNNING step of the kind `approval` that has none, or an equal one.
      Raises UnknownPipelineRun, UnknownStep, StepNotWaiting.
    - `list` returns the runs that match all terms, newest first; the fields are `pipeline_run.FILTER_FIELDS`.
    - `begin_step`, `begin_attempt`, `set_fields`, `end_step` and `finish` can be repeated after a crash: they
      write the same rows. `begin_attempt` sets the message of the newest try, or begins a further one.
      `end_step` ends a step that has not ended, and stores a success under `cache_key`
      if there is one.
    - `set_fields` sets fields of the run: training_set, run, model_version, release, rollout, gate_passed.
      `end_step` sets those in the outputs (`pipeline_run.fields_in`).
    - `finish` ends a run that has not ended, closes its open steps and, if the run has a model, writes
      `training.completed` to the outbox. `request_cancel` and `finish` also cancel the jobs of the run that
      have not ended, so that no job outlives its run, whichever process dies.
    - `unfinished` returns the runs that have not ended, of all projects.
    """

    async def create(self, run: PipelineRun, request_id: str, body: bytes, now: datetime) -> PipelineRun: ...

    async def get(self, name: PipelineRunName) -> PipelineRun | None: ...

    async def list(self, project: str, terms: Sequence[Term], size: int, token: str) -> Page[PipelineRun]: ...

    async def unfinished(self) -> Sequence[PipelineRunName]: ...

    async def request_cancel(
        self, name: PipelineRunName, request_id: str = "", body: bytes = b""
    ) -> PipelineRun: ...

    async def begin_step(self, name: PipelineRunName, step: str, now: datetime) -> None: ...

    async def set_fields(self, name: PipelineRunName, fields: Mapping[str, Any]) -> None: ...

    async def begin_attempt(self, name: PipelineRunName, step: str, attempt: int, message: str) -> None: ...

    async def end_step(
        self, name: PipelineRunName, step: str, ended: Ended, now: datetime, cache_key: str = ""
    ) -> None: ...

    async def decide(
        self, name: PipelineRunName, step: str, approval: Approval, request_id: str, body: bytes
    ) -> PipelineRun: ...

    async def finish(
        self, name: PipelineRunName, state: JobState, reason: str, message: str, now: datetime
    ) -> None: ...


@dataclass(frozen=True)
class VersionOrigin:
    """What the registry knows of the origin of a model version; empty texts: nothing."""

    training_run: str = ""
    training_set: str = ""
    pipeline_run: str = ""
    parent_version: str = ""


class FeaturePeer(TrainingSets, Protocol):
    """The feature service.

    - `upstream` returns the edges (read, reader) from sources and entities to a definition.

    - `build` is idempotent by request_id and returns the name of a job of the feature service.
    - `job` returns (state, training set, progress or error in one line).

    Raises NotFound for an unknown resource, RequestIdReused, and PeerUnavailable.
    """

    async def build(
        self, project: str, feature_set: str, spine: Mapping[str, Any], request_id: str
    ) -> str: ...

    async def job(self, name: str) -> tuple[JobState, str, str]: ...

    async def upstream(self, name: str) -> Sequence[tuple[str, str]]: ...


@dataclass(frozen=True)
class Champion:
    """The release that production serves, and its model version."""

    version: str
    release: str


class RegistryPeer(Protocol):
    """The registry.

    - Every mutation is idempotent by request_id: a repeated one returns the first result, and another body
      raises RequestIdReused. `upload` of the same bytes changes nothing.
    - `promote_to_staging` returns (whether the offline gate passed, its findings).
    - `start_rollout` returns (name of the rollout, its state).

    Raises NotFound for an unknown resource, RejectedVersion for a release of a rejected version,
    DigestMismatch if sent bytes differ from the declared ones, and PeerUnavailable.
    """

    async def champion(self, model: str) -> Champion | None: ...

    async def origin(self, version: str) -> VersionOrigin: ...

    async def create_version(self, model: str, version: Mapping[str, Any], request_id: str) -> str: ...

    async def upload(self, version: str, artifact: str, pieces: AsyncIterable[bytes]) -> None:
        """Sends a file. Raises what reading `pieces` raises; the registry has no part of the file then."""
        ...

    async def promote_to_staging(
        self, version: str, values: Mapping[str, float], findings: list[str], reason: str, request_id: str
    ) -> tuple[bool, list[str]]: ...

    async def create_release(self, model: str, release: Mapping[str, Any], request_id: str) -> str: ...

    async def start_rollout(
        self, model: str, release: str, reason: str, request_id: str
    ) -> tuple[str, str]: ...
