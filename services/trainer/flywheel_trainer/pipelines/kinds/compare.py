"""The kind `compare`: challenger and champion on the same held-out rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_common.errors import Internal
from flywheel_common.signature import OutputKind
from flywheel_job.artifacts import MODEL
from flywheel_trainer.pipelines.comparison import HEADLINES, Compare
from flywheel_trainer.pipelines.kinds.names import check_names
from flywheel_trainer.pipelines.ports import FeaturePeer, RegistryPeer
from flywheel_trainer.pipelines.run_report import RunReports
from flywheel_trainer.pipelines.step_kind import Begun, Result


class CompareStep:
    """`StepKind` that evaluates the model of a run beside the champion."""

    required = ("model", "run", "training_set")
    outputs = ("metrics", "champion", "note")
    cacheable = False

    def __init__(
        self, feature: FeaturePeer, registry: RegistryPeer, reports: RunReports, compare: Compare
    ) -> None:
        self._feature, self._registry, self._reports, self._compare = feature, registry, reports, compare

    def check(self, spec: Mapping[str, Any], project: str, later: Sequence[str]) -> None:
        check_names(spec, ("model", "run", "training_set"), project, later)

    async def run(self, step: Begun) -> Result:
        run = step.spec["run"]
        found = await self._reports.of(run)
        champion = await self._registry.champion(step.spec["model"])
        name = champion.version if champion else ""
        if "split" not in found.report:
            note = "not compared with the champion: the report has no split of the rows"
            return Result(run, note, {"metrics": found.metrics, "champion": name, "note": note})
        training_set = await self._feature.get(step.spec["training_set"])
        challenger = await self._reports.content(found.artifacts[MODEL])
        compared = await self._compare(training_set, found.report, challenger, champion)
        kind, key = found.output.kind, "rmse" if found.output.kind is OutputKind.REGRESSION else "log_loss"
        reported, measured = found.metrics.get(key), compared.challenger[key]
        if reported is not None and not math.isclose(reported, measured, rel_tol=1e-4, abs_tol=1e-4):
            raise Internal(f"The job reported {key} {reported:.6f}, but evaluation gives {measured:.6f}.")
        metrics = {**found.metrics, **compared.challenger}
        if found.threshold is not None:
            metrics["threshold"] = found.threshold
        metrics |= {f"champion_{key}": value for key, value in compared.champion.items()}
        metrics = {key: value for key, value in metrics.items() if math.isfinite(value)}
        summary = f"{HEADLINES[kind].format_map(compared.challenger)}; {compared.note}"
        return Result(run, summary, {"metrics": metrics, "champion": name, "note": compared.note})
