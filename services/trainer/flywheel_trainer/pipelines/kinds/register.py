"""The kind `register`: a model version with its files, and the offline gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_trainer.jobs.errors import InvalidSpec
from flywheel_trainer.pipelines.artifacts import version_fields
from flywheel_trainer.pipelines.kinds.names import check_names
from flywheel_trainer.pipelines.ports import FeaturePeer, RegistryPeer
from flywheel_trainer.pipelines.run_report import RunReports
from flywheel_trainer.pipelines.step_kind import Begun, Result


class RegisterStep:
    """`StepKind` that creates a model version with its files, and asks the offline gate."""

    required = ("model", "run")
    outputs = ("model_version", "passed", "findings", "metrics")
    cacheable = False

    def __init__(self, feature: FeaturePeer, registry: RegistryPeer, reports: RunReports) -> None:
        self._feature, self._registry, self._reports = feature, registry, reports

    def check(self, spec: Mapping[str, Any], project: str, later: Sequence[str]) -> None:
        check_names(spec, ("model", "run"), project, later)
        for name, value in spec.get("metrics", {}).items():
            if not isinstance(value, int | float):
                raise InvalidSpec(f"The metric {name[:100]!r} is {value!r}.", field="metrics")

    async def run(self, step: Begun) -> Result:
        found = await self._reports.of(step.spec["run"])
        training_set = step.spec.get("training_set") or found.training_set
        feature_set = (await self._feature.get(training_set)).feature_set if training_set else ""
        metrics: dict[str, float] = dict(step.spec.get("metrics") or found.metrics)
        version = await self._registry.create_version(
            step.spec["model"],
            version_fields(found.report, found.output, found.artifacts)
            | {
                "training_run": step.spec["run"],
                "metrics": metrics,
                "feature_set": feature_set,
                "training_dataset": training_set,
                "cause_alert": step.run.cause_alert,
                "pipeline_run": str(step.run.name),
            },
            step.request_id,
        )
        for artifact in found.artifacts.values():
            await self._registry.upload(version, artifact.name, self._reports.stream(artifact))
        note = step.spec.get("note", "")
        passed, findings = await self._registry.promote_to_staging(
            version,
            metrics,
            [note] if note else [],
            "offline evaluation by the pipeline",
            f"{step.request_id}:gate",
        )
        message = "; ".join(findings) or ("offline gate passed" if passed else "offline gate refused")
        return Result(
            version,
            message,
            {"model_version": version, "passed": passed, "findings": findings, "metrics": metrics},
        )
