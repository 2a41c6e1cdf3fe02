"""The kinds `release` and `rollout`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_common.signature import OutputKind
from flywheel_job.evaluation.calibration import calibration_to_json
from flywheel_trainer.jobs.errors import InvalidSpec
from flywheel_trainer.pipelines.kinds.names import check_names
from flywheel_trainer.pipelines.ports import FeaturePeer, RegistryPeer
from flywheel_trainer.pipelines.run_report import RunReports
from flywheel_trainer.pipelines.step_kind import Begun, Result


class ReleaseStep:
    """`StepKind` that creates a release of a version with its calibration, threshold and fallback.

    A REGRESSION has neither calibration nor threshold, a MULTICLASS model those that its report names.
    """

    required = ("model_version", "run")
    outputs = ("release", "threshold")
    cacheable = False

    def __init__(self, feature: FeaturePeer, registry: RegistryPeer, reports: RunReports) -> None:
        self._feature, self._registry, self._reports = feature, registry, reports

    def check(self, spec: Mapping[str, Any], project: str, later: Sequence[str]) -> None:
        check_names(spec, ("model_version", "run"), project, later)
        threshold = spec.get("threshold", 0)
        if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise InvalidSpec("threshold must be between 0 and 1.", field="threshold")

    async def run(self, step: Begun) -> Result:
        found = await self._reports.of(step.spec["run"])
        threshold, kind = step.spec.get("threshold") or found.threshold, found.output.kind
        if threshold is not None and kind is OutputKind.REGRESSION:
            raise InvalidSpec("threshold must be 0: a REGRESSION has none.", field="threshold")
        version: str = step.spec["model_version"]
        set_name = found.training_set
        release = await self._registry.create_release(
            version.partition("/versions/")[0],
            {
                "model_version": version,
                "feature_set": (await self._feature.get(set_name)).feature_set if set_name else "",
                "calibration": calibration_to_json(found.calibration) if found.calibration else {},
                "threshold": threshold,
                "fallback": step.spec.get("fallback"),
                "segment_keys": list(step.spec.get("segment_keys", [])),
            },
            step.request_id,
        )
        if threshold is None:
            return Result(release, f"{kind.name}, no threshold", {"release": release})
        return Result(release, f"threshold {threshold:.4f}", {"release": release, "threshold": threshold})


class RolloutStep:
    """`StepKind` that starts the rollout, which loads the release first."""

    required = ("release",)
    outputs = ("rollout", "state")
    cacheable = False

    def __init__(self, registry: RegistryPeer) -> None:
        self._registry = registry

    def check(self, spec: Mapping[str, Any], project: str, later: Sequence[str]) -> None:
        check_names(spec, ("release",), project, later)

    async def run(self, step: Begun) -> Result:
        release: str = step.spec["release"]
        alert = step.run.cause_alert
        cause = f"retraining after {alert}" if alert else "pipeline run"
        rollout, state = await self._registry.start_rollout(
            release.partition("/releases/")[0],
            release,
            step.spec.get("reason") or f"{cause} {step.run.name.run}",
            step.request_id,
        )
        return Result(rollout, state, {"rollout": rollout, "state": state})
