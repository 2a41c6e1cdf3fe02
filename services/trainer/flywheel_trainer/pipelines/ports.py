"""Ports of pipelines: store, feature service, registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from flywheel_common.paging import Page
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.jobs.ports import TrainingSet
from flywheel_trainer.pipelines.comparison import ChampionModel
from flywheel_trainer.pipelines.pipeline_run import (
    PipelineRun,
    PipelineRunName,
)


class PipelineStore(Protocol):
    """Keeps pipeline runs. `create` and `request_cancel` are idempotent by request_id. `begin_step`, `note`, `end_step` and `finish` may be
    repeated after a crash: they write the same rows again. `note` and `end_step` set fields of the run (`facts`).
    `finish` ends a run that has not ended, closes its open steps and puts `training.completed` into the outbox, in one
    transaction. `unfinished` are the runs to be driven."""

    async def create(self, run: PipelineRun, request_id: str, body: bytes, now: datetime) -> PipelineRun: ...

    async def get(self, name: PipelineRunName) -> PipelineRun | None: ...

    async def list(self, project: str, size: int, token: str) -> Page[PipelineRun]: ...

    async def unfinished(self) -> Sequence[PipelineRunName]: ...

    async def request_cancel(
        self, name: PipelineRunName, request_id: str = "", body: bytes = b""
    ) -> PipelineRun: ...

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


class FeaturePeer(Protocol):
    """The feature service. `build` is idempotent by request_id and answers a job's name; `job` answers (state, training
    set, progress or error in one line); `get` is `jobs.TrainingSets`. Raises NotFound for what it does not know,
    InvalidArgument REQUEST_ID_REUSED, Unavailable FEATURE_UNAVAILABLE when it does not answer."""

    async def build(
        self, project: str, feature_set: str, spine: Mapping[str, Any], request_id: str
    ) -> str: ...

    async def job(self, name: str) -> tuple[JobState, str, str]: ...

    async def get(self, name: str) -> TrainingSet: ...


class RegistryPeer(Protocol):
    """The registry. Every mutation is idempotent by request_id: an equal one is answered as the first was, another raises
    InvalidArgument REQUEST_ID_REUSED. `upload` of the same bytes changes nothing. Raises NotFound for what it does not
    know, FailedPrecondition for a release of a rejected version, DataLoss DIGEST_MISMATCH for other bytes than declared
    (sent or received), Unavailable REGISTRY_UNAVAILABLE when it does not answer."""

    async def champion(self, model: str) -> ChampionModel | None: ...

    async def create_version(self, model: str, version: Mapping[str, Any], request_id: str) -> str: ...

    async def upload(self, version: str, artifact: str, data: bytes) -> None: ...

    async def promote_to_staging(
        self, version: str, values: Mapping[str, float], findings: list[str], reason: str, request_id: str
    ) -> tuple[bool, list[str]]: ...

    async def create_release(self, model: str, release: Mapping[str, Any], request_id: str) -> str: ...

    async def start_rollout(
        self, model: str, release: str, reason: str, request_id: str
    ) -> tuple[str, str]: ...
