"""The feature service in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flywheel_common.errors import FailedPrecondition, NotFound, Unavailable
from flywheel_trainer.fakes.registry import _body
from flywheel_trainer.fakes.requests import MemoryRequests
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.jobs.ports import TrainingSet


class MemoryTrainingSets:
    """`jobs.TrainingSets` out of a dictionary."""

    def __init__(self) -> None:
        self.known: dict[str, TrainingSet] = {}

    async def get(self, name: str) -> TrainingSet:
        if name not in self.known:
            raise NotFound(f"Training set {name!r} does not exist.", reason="UNKNOWN_TRAINING_SET")
        return self.known[name]


class MemoryFeature(MemoryTrainingSets):
    """`pipeline.FeaturePeer` and `jobs.TrainingSets`. Every feature set of `builds` becomes the training set that it names, after
    `looks` looks at the job, unless there is a `failure`. Sets in `short` have short feature names. `down`: it does not answer."""

    def __init__(self, builds: Mapping[str, str], looks: int = 0) -> None:
        super().__init__()
        self.builds, self.looks = dict(builds), looks
        self.failure = ""
        self.short: set[str] = set()
        self.down = False
        self._requests = MemoryRequests()
        self._jobs: dict[str, tuple[str, int]] = {}

    async def build(self, project: str, feature_set: str, spine: Mapping[str, Any], request_id: str) -> str:
        self._answering()

        def begin() -> str:
            if feature_set not in self.builds:
                raise NotFound(f"{feature_set} does not exist.", reason="UNKNOWN_NAME")
            name = f"projects/{project}/jobs/build-{len(self._jobs) + 1}"
            self._jobs[name] = (self.builds[feature_set], 0)
            return name

        return self._requests.once("build", request_id, _body(project, feature_set, spine), begin)

    async def job(self, name: str) -> tuple[JobState, str, str]:
        self._answering()
        if name not in self._jobs:
            raise NotFound(f"{name} does not exist.", reason="UNKNOWN_JOB")
        training_set, seen = self._jobs[name]
        self._jobs[name] = (training_set, seen + 1)
        if seen < self.looks:
            return JobState.RUNNING, "", ""
        if self.failure:
            return JobState.FAILED, "", self.failure
        return JobState.SUCCEEDED, training_set, ""

    async def get(self, name: str) -> TrainingSet:
        self._answering()
        found = await super().get(name)
        if name in self.short:
            raise FailedPrecondition(
                f"Training set {name!r} has short feature names.", reason="SHORT_FEATURE_NAMES"
            )
        return found

    def _answering(self) -> None:
        if self.down:
            raise Unavailable("The feature service does not answer.", reason="FEATURE_UNAVAILABLE")
