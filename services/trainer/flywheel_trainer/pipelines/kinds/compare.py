"""The kind `compare`: challenger and champion on the same held-out rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_common.errors import Internal
from flywheel_common.signature import OutputKind
from flywheel_common.value import from_micros
from flywheel_job.model_evaluation.params import REPORT
from flywheel_trainer.jobs.evaluate_spec import EvaluateSpec
from flywheel_trainer.jobs.model_spec import ModelSource
from flywheel_trainer.pipelines.kinds.job import StepJobs
from flywheel_trainer.pipelines.kinds.names import check_names
from flywheel_trainer.pipelines.ports import RegistryPeer
from flywheel_trainer.pipelines.run_report import RunReports
from flywheel_trainer.pipelines.step_kind import Begun, Result

HEADLINES = {
    OutputKind.BINARY: "AUC {auc:.4f}, log-loss {log_loss:.4f}",
    OutputKind.MULTICLASS: "accuracy {accuracy:.4f}, log-loss {log_loss:.4f}",
    OutputKind.REGRESSION: "RMSE {rmse:.4g}, R2 {r2:.4f}",
}
"""The metrics of an output in one line."""


class CompareStep:
    """`StepKind` that evaluates the model of a run beside the champion, by an EVALUATE job.

    The rows are those of the training set from the time that the report gives as the start of its evaluation.
    """

    required = ("model", "run", "training_set")
    outputs = ("metrics", "champion", "note")
    cacheable = False

    def __init__(self, registry: RegistryPeer, reports: RunReports, jobs: StepJobs) -> None:
        self._registry, self._reports, self._jobs = registry, reports, jobs

    def check(self, spec: Mapping[str, Any], project: str, later: Sequence[str]) -> None:
        check_names(spec, ("model", "run", "training_set"), project, later)

    async def run(self, step: Begun) -> Result:
        run = step.spec["run"]
        found = await self._reports.of(run)
        champion = await self._registry.champion(step.spec["model"])
        name = champion.version if champion else ""
        start_us = found.report.get("split", {}).get("evaluation_start_us")
        if start_us is None:
            note = "not compared with the champion: the report has no start of its evaluation rows"
            return Result(run, note, {"metrics": found.metrics, "champion": name, "note": note})
        spec = EvaluateSpec(
            experiment=found.experiment,
            source=ModelSource(run=run),
            training_set=step.spec["training_set"],
            champion=step.spec["model"],
            kind=found.output.kind.name,
            weight_column=found.report.get("weight_column", ""),
            start=from_micros(int(start_us)),
            bootstrap_samples=0,
        )
        job = await self._jobs.submitted(step, spec)
        evaluated = await self._jobs.succeeded(step, job)
        artifact = next(one for one in evaluated.artifacts if one.name == REPORT)
        report = json.loads(await self._reports.content(artifact))
        kind, values = found.output.kind, report["evidence"]
        key = "rmse" if kind is OutputKind.REGRESSION else "log_loss"
        reported = found.metrics.get(key, values[key])
        same_rows = not report["left_out_rows"]
        if same_rows and not math.isclose(reported, values[key], rel_tol=1e-4, abs_tol=1e-4):
            raise Internal(f"The job reported {key} {reported:.6f}, but evaluation gives {values[key]:.6f}.")
        theirs = _headline(kind, report["champion_metrics"]) if report["champion"] else ""
        note = report["note"] or f"champion {report['champion']} on the same {report['rows']} rows: {theirs}"
        outputs = {
            "metrics": {**found.metrics, **values},
            "champion": report["champion"] or name,
            "note": note,
        }
        return Result(run, f"{_headline(kind, report['metrics'])}; {note}", outputs)


def _headline(kind: OutputKind, estimates: Mapping[str, Any]) -> str:
    """Metrics of a report in one line; what its rows do not have, such as the AUC of one class, is NaN."""
    values = {key: math.nan if one["value"] is None else one["value"] for key, one in estimates.items()}
    return HEADLINES[kind].format_map(values)
