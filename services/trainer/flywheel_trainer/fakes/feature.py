"""The feature service in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_common.errors import NotFound
from flywheel_common.grpc.errors import PeerUnavailable
from flywheel_trainer.fakes.requests import MemoryRequests, body_of
from flywheel_trainer.jobs.errors import ShortFeatureNames, UnknownJob, UnknownTrainingSet
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.jobs.ports import TrainingSet


class MemoryTrainingSets:
    """`TrainingSets` from the dictionary `known`."""

    def __init__(self) -> None:
        self.known: dict[str, TrainingSet] = {}

    async def get(self, name: str) -> TrainingSet:
        if name not in self.known:
            raise UnknownTrainingSet.of(name)
        return self.known[name]


class MemoryFeature(MemoryTrainingSets):
    """`FeaturePeer`: builds the training set that `builds` gives for a feature set.

    A job is RUNNING for the first `running_reads` reads and then SUCCEEDED, or FAILED if `failure` is set.
    Training sets in `short` have short feature names. While `down` is set, no method answers.
    """

    def __init__(self, builds: Mapping[str, str], running_reads: int = 0) -> None:
        super().__init__()
        self.builds, self.running_reads = dict(builds), running_reads
        self.failure = ""
        self.short: set[str] = set()
        self.edges: dict[str, Sequence[tuple[str, str]]] = {}
        """The lineage (read, reader) of a definition."""
        self.down = False
        self._requests = MemoryRequests()
        self._jobs: dict[str, tuple[str, int]] = {}

    async def build(self, project: str, feature_set: str, spine: Mapping[str, Any], request_id: str) -> str:
        self._check_up()

        def start() -> str:
            if feature_set not in self.builds:
                raise NotFound(f"{feature_set} does not exist.")
            name = f"projects/{project}/jobs/build-{len(self._jobs) + 1}"
            self._jobs[name] = (self.builds[feature_set], 0)
            return name

        return self._requests.once("build", request_id, body_of(project, feature_set, spine), start)

    async def job(self, name: str) -> tuple[JobState, str, str]:
        self._check_up()
        if name not in self._jobs:
            raise UnknownJob.of(name)
        training_set, reads = self._jobs[name]
        self._jobs[name] = (training_set, reads + 1)
        if reads < self.running_reads:
            return JobState.RUNNING, "", ""
        if self.failure:
            return JobState.FAILED, "", self.failure
        return JobState.SUCCEEDED, training_set, ""

    async def upstream(self, name: str) -> Sequence[tuple[str, str]]:
        self._check_up()
        if name not in self.edges:
            raise NotFound(f"{name} does not exist.")
        return self.edges[name]

    async def get(self, name: str) -> TrainingSet:
        self._check_up()
        found = await super().get(name)
        if name in self.short:
            raise ShortFeatureNames.of(name)
        return found

    def _check_up(self) -> None:
        if self.down:
            raise PeerUnavailable("feature")
