"""The report and the files of a run that can be registered."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flywheel_common.scoring.calibration import Platt
from flywheel_common.storage.objects import ObjectStore
from flywheel_job.artifacts import MODEL, REPORT
from flywheel_job.evaluation.calibration import IDENTITY
from flywheel_job.outcome import Artifact
from flywheel_trainer.jobs.verified import read_verified
from flywheel_trainer.pipelines.errors import MissingArtifact
from flywheel_trainer.runs.run import RunName
from flywheel_trainer.runs.use_cases import Runs


@dataclass(frozen=True)
class RunReport:
    """What a job left with `ctx.export`.

    The reports of built-in recipes also have a calibration, a threshold and the split of the rows; those of
    the code of users may have them.
    """

    report: Mapping[str, Any]
    artifacts: Mapping[str, Artifact]
    training_set: str
    run_metrics: Mapping[str, float]

    @property
    def calibration(self) -> Platt:
        """The identity if the report has none."""
        found = self.report.get("calibration")
        return IDENTITY if found is None else Platt(**found)

    @property
    def threshold(self) -> float:
        return float(self.report.get("threshold", 0.5))

    @property
    def metrics(self) -> dict[str, float]:
        """Those of the report, or of the run if it has none, that are finite."""
        given = self.report.get("metrics") or self.run_metrics
        found = {key: float(value) for key, value in given.items()}
        return {key: value for key, value in found.items() if math.isfinite(value)}


class RunReports:
    """Reads the reports and the files of runs."""

    def __init__(self, runs: Runs, objects: ObjectStore) -> None:
        self._runs, self._objects = runs, objects

    async def of(self, run: str) -> RunReport:
        """Raises UnknownRun, MissingArtifact, DigestMismatch."""
        found = await self._runs.get(RunName.parse(run))
        artifacts = {artifact.name: artifact for artifact in found.artifacts}
        for needed in (MODEL, REPORT):
            if needed not in artifacts:
                raise MissingArtifact(f"{run} has no artifact {needed}: its job did not export a model.")
        report = json.loads(await self.content(artifacts[REPORT]))
        training_set = found.training_set or report.get("training_set", "")
        return RunReport(report, artifacts, training_set, found.metrics)

    async def content(self, artifact: Artifact) -> bytes:
        """Raises DigestMismatch."""
        return await read_verified(self._objects, artifact.sha256)
