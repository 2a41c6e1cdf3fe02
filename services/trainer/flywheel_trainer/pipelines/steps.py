"""The steps from a training set to a rollout. Each may be repeated after a crash: what it asks of others carries a
request id made of the workflow's id and the step's name, so that repeating it has no second effect.

A step's result is a small JSON object; the durable workflow keeps it and hands it to later steps.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import Mapping
from typing import Any

from flywheel_common.clock import Clock
from flywheel_common.errors import FailedPrecondition, FlywheelError, Internal
from flywheel_common.storage.objects import ObjectStore
from flywheel_trainer.evaluation.calibration import Platt
from flywheel_trainer.jobs.job import ENDED, JobName, JobState
from flywheel_trainer.jobs.train_spec import TrainSpec
from flywheel_trainer.jobs.use_cases import Jobs
from flywheel_trainer.pipelines.artifacts import read_verified
from flywheel_trainer.pipelines.comparison import Compare
from flywheel_trainer.pipelines.errors import unknown_pipeline_run
from flywheel_trainer.pipelines.pipeline_run import PipelineRun, PipelineRunName
from flywheel_trainer.pipelines.ports import FeaturePeer, PipelineStore, RegistryPeer
from flywheel_trainer.recipes.outcome import MODEL, REPORT, Produced
from flywheel_trainer.runs.run import RunName
from flywheel_trainer.runs.use_cases import Runs

Result = dict[str, Any]


class Cancelled(Exception):
    """The run was cancelled on request."""


class Pipeline:
    """The steps' code. Raises domain errors; `Cancelled` between and inside steps."""

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
        self._clock, self._poll = clock, poll_seconds

    async def training_set(self, workflow: str, _seen: Mapping[str, Result]) -> Result:
        """Have the feature service join the spine; wait until it has."""
        run = await self._begin(workflow, "training_set")
        job = await self._feature.build(
            run.name.project, run.spec.feature_set, run.spec.spine, f"{run.name.run}:training_set"
        )
        while True:
            state, name, message = await self._feature.job(job)
            if state is JobState.SUCCEEDED:
                break
            if state in ENDED:
                raise FailedPrecondition(
                    f"The training set was not built: {message}", reason="TRAINING_SET_FAILED"
                )
            await self._pause(workflow)
        training_set = await self._feature.get(name)
        if training_set.naive:
            raise FailedPrecondition(
                "A naive join leaks the future: it trains nothing.", reason="LEAKING_TRAINING_SET"
            )
        return await self._end(
            run, "training_set", name, f"{training_set.row_count:,} rows, hash {training_set.content_hash[:12]}",
            {"training_set": name}, {"name": name, "feature_set": training_set.feature_set},
        )  # fmt: skip

    async def train(self, workflow: str, seen: Mapping[str, Result]) -> Result:
        """A TRAIN job on the compute engine; wait until it has ended."""
        run = await self._begin(workflow, "train")
        spec = TrainSpec(**{**run.spec.train.__dict__, "training_set": seen["training_set"]["name"]})
        request_id = f"{run.name.run}:train"
        job = await self._jobs.submit(run.name.project, spec, 0, request_id, repr(spec).encode())
        # Known from here on: whoever watches the pipeline sees its losses while it trains.
        await self._store.note(run.name, {"run": str(job.run)})
        while job.state not in ENDED:
            try:
                await self._pause(workflow)
            except Cancelled:
                await self._stop_job(job.name)
                raise
            job = await self._jobs.get(job.name)
        if job.state is not JobState.SUCCEEDED:
            raise FailedPrecondition(
                f"{job.name} ended as {job.state}: {job.error_message}",
                reason=job.error_reason or "TRAINING_FAILED",
            )
        trained = await self._runs.get(job.run)
        loss = trained.metrics.get("val_loss", math.nan)
        return await self._end(
            run, "train", str(job.name), f"validation loss {loss:.4f} after {spec.hyperparameters.epochs} epochs",
            {"run": str(job.run)}, {"job": str(job.name), "run": str(job.run)},
        )  # fmt: skip

    async def evaluate(self, workflow: str, seen: Mapping[str, Result]) -> Result:
        """Score challenger and champion on the same held-out rows, by the same code."""
        run = await self._begin(workflow, "evaluate")
        report, artifacts = await self._report(seen["train"]["run"])
        training_set = await self._feature.get(seen["training_set"]["name"])
        challenger = await self._content(artifacts[MODEL])
        champion = await self._registry.champion(run.spec.model)
        compared = await self._compare(training_set, report, challenger, champion)
        claimed, found = report["metrics"]["log_loss"], compared.challenger["log_loss"]
        if not math.isclose(claimed, found, abs_tol=1e-4):
            raise Internal(f"The job reported log_loss {claimed:.6f}, evaluation finds {found:.6f}.")
        metrics = {**report["metrics"], **compared.challenger, "threshold": report["threshold"]}
        metrics |= {f"champion_{key}": value for key, value in compared.champion.items()}
        metrics = {key: value for key, value in metrics.items() if math.isfinite(value)}
        message = (
            f"AUC {metrics.get('auc', math.nan):.4f}, log-loss {metrics['log_loss']:.4f}; {compared.note}"
        )
        return await self._end(
            run, "evaluate", seen["train"]["run"], message, {},
            {"metrics": metrics, "champion": champion.version if champion else "", "note": compared.note},
        )  # fmt: skip

    async def register(self, workflow: str, seen: Mapping[str, Result]) -> Result:
        """Declare the version, upload its files, and ask for STAGING: the registry's offline gate decides."""
        run = await self._begin(workflow, "register")
        report, artifacts = await self._report(seen["train"]["run"])
        metrics: dict[str, float] = seen["evaluate"]["metrics"]
        golden = report["golden"]
        version = await self._registry.create_version(
            run.spec.model,
            {
                "training_run": seen["train"]["run"],
                "framework": report["framework"],
                "metrics": metrics,
                "feature_set": seen["training_set"]["feature_set"],
                "training_dataset": seen["training_set"]["name"],
                "inputs": report["inputs"],
                "artifacts": [(a.name, a.size_bytes, a.sha256) for a in artifacts.values()],
                "golden_rows": golden["row_count"],
                "golden_inputs": base64.b64decode(golden["inputs"]),
                "golden_scores": base64.b64decode(golden["scores"]),
                "parent_version": report["warm_started_from"],
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
            [seen["evaluate"]["note"]],
            "offline evaluation by the pipeline",
            f"{run.name.run}:gate",
        )
        message = "; ".join(findings) or ("offline gate passed" if passed else "offline gate refused")
        return await self._end(
            run, "register", version, message, {"model_version": version, "gate_passed": passed},
            {"version": version, "passed": passed, "message": message, "compared": compared},
        )  # fmt: skip

    async def release(self, workflow: str, seen: Mapping[str, Result]) -> Result:
        """Bundle the version with its calibration, threshold and fallback."""
        run = await self._begin(workflow, "release")
        report, _ = await self._report(seen["train"]["run"])
        platt = Platt(**report["calibration"])
        threshold = run.spec.threshold or report["threshold"]
        release = await self._registry.create_release(
            run.spec.model,
            {
                "model_version": seen["register"]["version"],
                "feature_set": seen["training_set"]["feature_set"],
                "slope": platt.slope,
                "intercept": platt.intercept,
                "threshold": threshold,
                "fallback": run.spec.fallback,
                "segment_keys": list(run.spec.segment_keys),
            },
            f"{run.name.run}:release",
        )
        return await self._end(
            run,
            "release",
            release,
            f"threshold {threshold:.4f}",
            {"release": release},
            {"release": release, "start_rollout": run.spec.start_rollout},
        )

    async def rollout(self, workflow: str, seen: Mapping[str, Result]) -> Result:
        """Start shadow → canary → promotion; without a champion the registry promotes at once."""
        run = await self._begin(workflow, "rollout")
        cause = f"retraining after {run.cause_alert}" if run.cause_alert else "pipeline run"
        rollout, state = await self._registry.start_rollout(
            run.spec.model, seen["release"]["release"], f"{cause} {run.name.run}", f"{run.name.run}:rollout"
        )
        return await self._end(
            run, "rollout", rollout, f"{state}", {"rollout": rollout}, {"rollout": rollout}
        )

    async def finish(self, workflow: str, state: JobState, reason: str, message: str) -> None:
        """The end, with its event."""
        name = PipelineRunName.parse(workflow)
        await self._store.finish(name, state, reason, message, self._clock.now())

    async def _begin(self, workflow: str, step: str) -> PipelineRun:
        name = PipelineRunName.parse(workflow)
        run = await self._store.get(name)
        if run is None:
            raise unknown_pipeline_run(name)
        if run.cancel_requested:
            raise Cancelled
        await self._store.begin_step(name, step, self._clock.now())
        return run

    async def _end(
        self, run: PipelineRun, step: str, output: str, message: str, facts: Mapping[str, Any], result: Result
    ) -> Result:
        await self._store.end_step(run.name, step, output, message, facts, self._clock.now())
        return result

    async def _pause(self, workflow: str) -> None:
        await asyncio.sleep(self._poll)
        run = await self._store.get(PipelineRunName.parse(workflow))
        if run is not None and run.cancel_requested:
            raise Cancelled

    async def _stop_job(self, name: JobName) -> None:
        try:
            await self._jobs.cancel(name)
        except FailedPrecondition:
            return

    async def _report(self, run_name: str) -> tuple[Mapping[str, Any], dict[str, Produced]]:
        run = await self._runs.get(RunName.parse(run_name))
        artifacts = {artifact.name: artifact for artifact in run.artifacts}
        for needed in (MODEL, REPORT):
            if needed not in artifacts:
                raise Internal(f"{run_name} left no {needed}.")
        return json.loads(await self._content(artifacts[REPORT])), artifacts

    async def _content(self, artifact: Produced) -> bytes:
        return await read_verified(self._objects, artifact.sha256)


def is_worth_retrying(error: BaseException) -> bool:
    """Outages pass; refusals stay. Lost connections count as outages."""
    return error.retryable if isinstance(error, FlywheelError) else isinstance(error, (OSError, TimeoutError))
