"""The kind `job`: a job of any kind on the compute engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from flywheel_job.errors import TrainingFailed
from flywheel_job.tuning.launch import trial_run
from flywheel_trainer.jobs.errors import JobEnded
from flywheel_trainer.jobs.job import ENDED, Job, JobState
from flywheel_trainer.jobs.kinds import Spec
from flywheel_trainer.jobs.train_spec import TrainSpec, check_spec
from flywheel_trainer.jobs.use_cases import Jobs
from flywheel_trainer.pipelines.errors import StepStopped, StepTimeout
from flywheel_trainer.pipelines.step_kind import Begun, Result
from flywheel_trainer.runs.run import Run
from flywheel_trainer.runs.use_cases import Runs

ParseJob = Callable[[Mapping[str, Any], Sequence[str]], Spec]
"""The specification in the JSON form of a Job; texts at the given paths get a placeholder, and other values
their default.

Raises InvalidSpec.
"""


class StepJobs:
    """Submits the job of a step, and waits for it."""

    def __init__(self, jobs: Jobs, runs: Runs) -> None:
        self._jobs, self._runs = jobs, runs

    async def submitted(self, step: Begun, spec: Spec) -> Job:
        """The job of this step, also when it is repeated."""
        # The pipeline run fixes the specification. A body made of its fields would change with the code.
        body = json.dumps(step.spec, sort_keys=True).encode()
        return await self._jobs.submit(
            step.run.name.project, spec, 0, step.request_id, body, pipeline_run=str(step.run.name)
        )

    async def succeeded(self, step: Begun, job: Job) -> Run:
        """The run of the job after its end; the job ends with the step. Raises TrainingFailed."""
        while job.state not in ENDED:
            try:
                await step.pause()
            except (StepStopped, StepTimeout):
                await self._cancel(job)
                raise
            job = await self._jobs.get(job.name)
        if job.state is not JobState.SUCCEEDED:
            raise _job_error(job)
        return await self._runs.get(job.run)

    async def _cancel(self, job: Job) -> None:
        with suppress(JobEnded):  # it was faster
            await self._jobs.cancel(job.name)


class JobStep:
    """`StepKind` that runs a job.

    It knows nothing of the kind of the job: the outputs are what every job leaves in its run.
    """

    required = ()
    outputs = ("job", "run", "training_set", "metrics", "artifacts", "params", "best_run")
    cacheable = True

    def __init__(self, jobs: StepJobs, parse: ParseJob) -> None:
        self._jobs, self._parse = jobs, parse

    def check(self, spec: Mapping[str, Any], project: str, later: Sequence[str]) -> None:
        parsed = self._parse(spec, later)
        if isinstance(parsed, TrainSpec):
            check_spec(parsed)

    async def run(self, step: Begun) -> Result:
        job = await self._jobs.submitted(step, self._parse(step.spec, ()))
        # Set before the job ends, so that watchers of the pipeline run can read the losses during training.
        await step.set_fields({"run": str(job.run)})
        run = await self._jobs.succeeded(step, job)
        outputs = {
            "job": str(job.name),
            "run": str(job.run),
            "training_set": run.training_set,
            "metrics": run.results,
            "artifacts": {artifact.name: artifact.sha256 for artifact in run.artifacts},
            "params": dict(run.params),
            **_best_run(run),
        }
        return Result(str(job.name), _summary(run), outputs)


def _summary(run: Run) -> str:
    if "val_loss" in run.metrics:
        return f"validation loss {run.metrics['val_loss']:.4f}"
    return ", ".join(f"{key} {value:.4g}" for key, value in sorted(run.results.items())[:3]) or "no metrics"


def _best_run(run: Run) -> dict[str, str]:
    """The run of the first of the best trials of a TUNE job."""
    first = run.params.get("best_trial", "").partition(",")[0]
    return {"best_run": trial_run(str(run.name), int(first))} if first.isdigit() else {}


def _job_error(job: Job) -> TrainingFailed:
    """The error of a step whose job did not succeed; its reason is the job's."""
    error = TrainingFailed(f"{job.name} ended as {job.state}: {job.error_message}")
    error.reason = job.error_reason or error.reason
    return error
