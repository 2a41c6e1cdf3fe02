"""The report and the files of a run that can be registered."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from flywheel_common.scoring.calibration import Temperature
from flywheel_common.signature import OutputKind, OutputSpec
from flywheel_common.storage.objects import ObjectStore
from flywheel_job.artifacts import MODEL, REPORT
from flywheel_job.evaluation.calibration import IDENTITY, Calibration
from flywheel_job.outcome import Artifact
from flywheel_trainer.jobs.model_report import calibration_of, output_of
from flywheel_trainer.jobs.verified import read_verified, stream_verified
from flywheel_trainer.pipelines.errors import MissingArtifact, UnsupportedModel
from flywheel_trainer.runs.run import RunName
from flywheel_trainer.runs.use_cases import Runs


@dataclass(frozen=True)
class RunReport:
    """What a job left with `ctx.export`.

    The reports of built-in recipes also have the split of the rows, and for a BINARY output a calibration and
    a threshold; those of the code of users may have them.
    """

    report: Mapping[str, Any]
    artifacts: Mapping[str, Artifact]
    output: OutputSpec
    calibration: Calibration | Temperature | None
    """That of the report. Without one it is the identity for BINARY, and None for the other outputs."""
    training_set: str
    experiment: str
    run_metrics: Mapping[str, float]

    @property
    def threshold(self) -> float | None:
        """That of the report; without one it is 0.5 for BINARY, and None for the other outputs."""
        binary, regression = (self.output.kind is kind for kind in (OutputKind.BINARY, OutputKind.REGRESSION))
        found = self.report.get("threshold", 0.5 if binary else None)
        return None if found is None or regression else float(found)

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
        """Raises UnknownRun, MissingArtifact, UnsupportedModel, DigestMismatch."""
        found = await self._runs.get(RunName.parse(run))
        artifacts = {artifact.name: artifact for artifact in found.artifacts}
        for needed in (MODEL, REPORT):
            if needed not in artifacts:
                raise MissingArtifact(f"{run} has no artifact {needed}: its job did not export a model.")
        report = json.loads(await self.content(artifacts[REPORT]))
        output, calibration = described(run, report)
        training_set = found.training_set or report.get("training_set", "")
        return RunReport(
            report, artifacts, output, calibration, training_set, found.experiment, found.results
        )

    async def content(self, artifact: Artifact) -> bytes:
        """A small file. Raises DigestMismatch."""
        return await read_verified(self._objects, artifact.sha256)

    def stream(self, artifact: Artifact) -> AsyncIterator[bytes]:
        """A file in pieces. Raises DigestMismatch after the last one."""
        return stream_verified(self._objects, artifact.sha256)


def described(run: str, report: Mapping[str, Any]) -> tuple[OutputSpec, Calibration | Temperature | None]:
    """The output of a run's model, and its calibration. Raises UnsupportedModel if the report has others."""
    try:
        output = output_of(report)
        calibration = calibration_of(report, output.kind)
    except (KeyError, TypeError, ValueError) as error:
        raise UnsupportedModel(
            f"{REPORT} of {run} describes no model that can be served: {error}."
        ) from error
    return output, IDENTITY if calibration is None and output.kind is OutputKind.BINARY else calibration
