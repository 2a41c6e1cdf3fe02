"""The steps of a pipeline, from a training set to a rollout.

A step can be repeated after a crash: its requests to other services carry a request id made of the pipeline
run's id and the step's name, so that a repeated request has no second effect. The result of a step is a small
JSON object, which the workflow engine stores and passes to later steps.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flywheel_common.clock import Clock
from flywheel_common.errors import FlywheelError, Internal
from flywheel_common.storage.objects import ObjectStore
from flywheel_job.artifacts import MODEL, REPORT
from flywheel_job.errors import TrainingFailed
from flywheel_job.evaluation.calibration import Platt
from flywheel_job.outcome import Artifact
from flywheel_trainer.jobs.errors import CancelledOnRequest
from flywheel_trainer.jobs.job import ENDED, Job, JobState
from flywheel_trainer.jobs.use_cases import Jobs
from flywheel_trainer.jobs.verified import read_verified
from flywheel_trainer.pipelines.artifacts import version_fields
from flywheel_trainer.pipelines.comparison import Compare
from flywheel_trainer.pipelines.errors import LeakingTrainingSet, TrainingSetFailed, UnknownPipelineRun
from flywheel_trainer.pipelines.pipeline_run import PipelineRun, PipelineRunName
from flywheel_trainer.pipelines.ports import FeaturePeer, PipelineStore, RegistryPeer
from flywheel_trainer.runs.run import RunName
from flywheel_trainer.runs.use_cases import Runs

Result = dict[str, Any]


class PipelineSteps:
    """The code of each step.

    Steps raise domain errors, and CancelledOnRequest once cancellation was requested.
    """

    def __init__(
        self,
        *,
        store: PipelineStore,
        feature: FeaturePeer,
        registry: RegistryPeer,
        jobs: Jobs,
        runs: Runs,
        objects: ObjectStore,
        compare: Compare,
        clock: Clock,
        poll_seconds: float,
    ) -> None:
        self._store, self._feature, self._registry = store, feature, registry
        self._jobs, self._runs, self._objects, self._compare = jobs, runs, objects, compare
        self._clock, self._poll_seconds = clock, poll_seconds

    async def training_set(self, workflow: str, _results: Mapping[str, Result]) -> Result:
        """Let the feature service build the training set, and wait for it."""
        run = await self._begin(workflow, "training_set")
        job = await self._feature.build(
            run.name.project, run.spec.feature_set, run.spec.spine, f"{run.name.run}:training_set"
        )
        while True:
            state, name, message = await self._feature.job(job)
            if state is JobState.SUCCEEDED:
                break
            if state in ENDED:
                raise TrainingSetFailed(f"The training set was not built: {message}")
            await self._pause(workflow)
        training_set = await self._feature.get(name)
        if training_set.naive:
            raise LeakingTrainingSet(
                f"{name} was built by a naive join, which reads values from the future: it cannot be used."
            )
        summary = f"{training_set.row_count:,} rows, hash {training_set.content_hash[:12]}"
        await self._end(run, "training_set", name, summary, {"training_set": name})
        return {"name": name, "feature_set": training_set.feature_set}

    async def train(self, workflow: str, results: Mapping[str, Result]) -> Result:
        """Run a TRAIN job on the compute engine, and wait for it."""
        run = await self._begin(workflow, "train")
        spec = replace(run.spec.train, training_set=results["training_set"]["name"])
        # The pipeline run fixes the specification. A body made of its fields would change with the code.
        body = spec.training_set.encode()
        job = await self._jobs.submit(
            run.name.project, spec, 0, f"{run.name.run}:train", body, pipeline_run=workflow
        )
        # Set before the job ends, so that watchers of the pipeline run can read the losses during training.
        await self._store.set_fields(run.name, {"run": str(job.run)})
        while job.state not in ENDED:
            await self._pause(workflow)
            job = await self._jobs.get(job.name)
        if job.state is not JobState.SUCCEEDED:
            raise _training_error(job)
        trained = await self._runs.get(job.run)
        loss = trained.metrics.get("val_loss", math.nan)
        summary = f"validation loss {loss:.4f} after {spec.hyperparameters.epochs} epochs"
        await self._end(run, "train", str(job.name), summary, {"run": str(job.run)})
        return {"job": str(job.name), "run": str(job.run)}

    async def evaluate(self, workflow: str, results: Mapping[str, Result]) -> Result:
        """Evaluate challenger and champion on the same held-out rows."""
        run = await self._begin(workflow, "evaluate")
        report, artifacts = await self._report(results["train"]["run"])
        training_set = await self._feature.get(results["training_set"]["name"])
        challenger = await self._content(artifacts[MODEL])
        champion = await self._registry.champion(run.spec.model)
        compared = await self._compare(training_set, report, challenger, champion)
        reported, found = report["metrics"]["log_loss"], compared.challenger["log_loss"]
        if not math.isclose(reported, found, abs_tol=1e-4):
            raise Internal(f"The job reported log_loss {reported:.6f}, but evaluation gives {found:.6f}.")
        metrics = {**report["metrics"], **compared.challenger, "threshold": report["threshold"]}
        metrics |= {f"champion_{key}": value for key, value in compared.champion.items()}
        metrics = {key: value for key, value in metrics.items() if math.isfinite(value)}
        auc = metrics.get("auc", math.nan)
        summary = f"AUC {auc:.4f}, log-loss {metrics['log_loss']:.4f}; {compared.note}"
        await self._end(run, "evaluate", results["train"]["run"], summary, {})
        return {
            "metrics": metrics,
            "champion": champion.version if champion else "",
            "note": compared.note,
        }

    async def register(self, workflow: str, results: Mapping[str, Result]) -> Result:
        """Create the model version, upload its files, and request STAGING from the offline gate."""
        run = await self._begin(workflow, "register")
        report, artifacts = await self._report(results["train"]["run"])
        metrics: dict[str, float] = results["evaluate"]["metrics"]
        version = await self._registry.create_version(
            run.spec.model,
            version_fields(report, artifacts)
            | {
                "training_run": results["train"]["run"],
                "metrics": metrics,
                "feature_set": results["training_set"]["feature_set"],
                "training_dataset": results["training_set"]["name"],
                "cause_alert": run.cause_alert,
                "pipeline_run": str(run.name),
            },
            f"{run.name.run}:register",
        )
        for artifact in artifacts.values():
            await self._registry.upload(version, artifact.name, await self._content(artifact))
        compared = {k: v for k, v in metrics.items() if k.startswith("champion_")}
        passed, findings = await self._registry.promote_to_staging(
            version,
            metrics,
            [results["evaluate"]["note"]],
            "offline evaluation by the pipeline",
            f"{run.name.run}:gate",
        )
        message = "; ".join(findings) or ("offline gate passed" if passed else "offline gate refused")
        fields = {"model_version": version, "gate_passed": passed}
        await self._end(run, "register", version, message, fields)
        return {"version": version, "passed": passed, "message": message, "compared": compared}

    async def release(self, workflow: str, results: Mapping[str, Result]) -> Result:
        """Create a release of the version with its calibration, threshold and fallback."""
        run = await self._begin(workflow, "release")
        report, _ = await self._report(results["train"]["run"])
        platt = Platt(**report["calibration"])
        threshold = run.spec.threshold or report["threshold"]
        release = await self._registry.create_release(
            run.spec.model,
            {
                "model_version": results["register"]["version"],
                "feature_set": results["training_set"]["feature_set"],
                "slope": platt.slope,
                "intercept": platt.intercept,
                "threshold": threshold,
                "fallback": run.spec.fallback,
                "segment_keys": list(run.spec.segment_keys),
            },
            f"{run.name.run}:release",
        )
        await self._end(run, "release", release, f"threshold {threshold:.4f}", {"release": release})
        return {"release": release, "start_rollout": run.spec.start_rollout}

    async def rollout(self, workflow: str, results: Mapping[str, Result]) -> Result:
        """Start the rollout, which loads the release first; without a champion this promotes it."""
        run = await self._begin(workflow, "rollout")
        cause = f"retraining after {run.cause_alert}" if run.cause_alert else "pipeline run"
        rollout, state = await self._registry.start_rollout(
            run.spec.model,
            results["release"]["release"],
            f"{cause} {run.name.run}",
            f"{run.name.run}:rollout",
        )
        await self._end(run, "rollout", rollout, state, {"rollout": rollout})
        return {"rollout": rollout}

    async def finish(self, workflow: str, state: JobState, reason: str, message: str) -> None:
        """End the run and publish `training.completed`."""
        name = PipelineRunName.parse(workflow)
        await self._store.finish(name, state, reason, message, self._clock.now())

    async def _begin(self, workflow: str, step: str) -> PipelineRun:
        name = PipelineRunName.parse(workflow)
        run = await self._store.get(name)
        if run is None:
            raise UnknownPipelineRun.of(name)
        if run.cancel_requested:
            raise _cancelled()
        await self._store.begin_step(name, step, self._clock.now())
        return run

    async def _end(
        self, run: PipelineRun, step: str, output: str, message: str, fields: Mapping[str, Any]
    ) -> None:
        await self._store.end_step(run.name, step, output, message, fields, self._clock.now())

    async def _pause(self, workflow: str) -> None:
        await asyncio.sleep(self._poll_seconds)
        run = await self._store.get(PipelineRunName.parse(workflow))
        if run is not None and run.cancel_requested:
            raise _cancelled()

    async def _report(self, run_name: str) -> tuple[Mapping[str, Any], dict[str, Artifact]]:
        run = await self._runs.get(RunName.parse(run_name))
        artifacts = {artifact.name: artifact for artifact in run.artifacts}
        for needed in (MODEL, REPORT):
            if needed not in artifacts:
                raise Internal(f"{run_name} has no artifact {needed}.")
        return json.loads(await self._content(artifacts[REPORT])), artifacts

    async def _content(self, artifact: Artifact) -> bytes:
        return await read_verified(self._objects, artifact.sha256)


def is_retryable(error: BaseException) -> bool:
    """Whether a step is repeated after this error: an outage of a dependency passes, a refusal does not."""
    return error.retryable if isinstance(error, FlywheelError) else isinstance(error, (OSError, TimeoutError))


def _cancelled() -> CancelledOnRequest:
    return CancelledOnRequest("cancelled on request")


def _training_error(job: Job) -> TrainingFailed:
    """The error of a run whose job did not succeed; its reason is the job's."""
    error = TrainingFailed(f"{job.name} ended as {job.state}: {job.error_message}")
    error.reason = job.error_reason or error.reason
    return error
