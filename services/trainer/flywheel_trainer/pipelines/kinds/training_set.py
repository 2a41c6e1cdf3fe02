"""The kind `training_set`: the feature service builds a training set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_trainer.jobs.job import ENDED, JobState
from flywheel_trainer.pipelines.errors import LeakingTrainingSet, TrainingSetFailed
from flywheel_trainer.pipelines.ports import FeaturePeer
from flywheel_trainer.pipelines.step_kind import Begun, Result


class TrainingSetStep:
    """`StepKind` that builds a training set and waits for it."""

    required = ("feature_set", "spine")
    outputs = ("training_set", "feature_set", "row_count", "content_hash", "categories")
    cacheable = True

    def __init__(self, feature: FeaturePeer) -> None:
        self._feature = feature

    def check(self, spec: Mapping[str, Any], project: str, later: Sequence[str]) -> None:
        """Accepts every specification: the feature service checks it."""

    async def run(self, step: Begun) -> Result:
        project = step.run.name.project
        job = await self._feature.build(
            project, step.spec["feature_set"], step.spec["spine"], step.request_id
        )
        while True:
            state, name, message = await self._feature.job(job)
            if state is JobState.SUCCEEDED:
                break
            if state in ENDED:
                raise TrainingSetFailed(f"The training set was not built: {message}")
            await step.pause()
        found = await self._feature.get(name)
        if found.naive:
            raise LeakingTrainingSet(
                f"{name} was built by a naive join, which reads values from the future: it cannot be used."
            )
        outputs = {
            "training_set": name,
            "feature_set": found.feature_set,
            "row_count": found.row_count,
            "content_hash": found.content_hash,
            "categories": {name: list(values) for name, values in found.categories.items()},
        }
        summary = f"{found.row_count:,} rows, hash {found.content_hash[:12]}"
        return Result(name, summary, outputs)
