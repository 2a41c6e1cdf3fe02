"""`StepJobs` whose EVALUATE jobs run in the test's process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyarrow import fs

from flywheel_common.storage.objects import ObjectStore
from flywheel_job import objects
from flywheel_job.artifacts import artifact_key
from flywheel_job.launch import LaunchSpec
from flywheel_trainer.jobs.evaluate import EvaluateKind
from flywheel_trainer.jobs.evaluate_spec import EvaluateSpec
from flywheel_trainer.jobs.files import SPEC
from flywheel_trainer.jobs.job import Job, JobName
from flywheel_trainer.pipelines.step_kind import Begun
from flywheel_trainer.runs.run import Run, RunName
from tests.support.training_job import run_here


class LocalEvaluations:
    """Runs the jobs over the bucket `b` in a folder, to which it copies the models; `stored` has models and
    results of jobs."""

    def __init__(self, kind: EvaluateKind, stored: ObjectStore, folder: Path) -> None:
        self._kind, self._stored, self._folder = kind, stored, folder
        self._files = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
        self._details: dict[JobName, Mapping[str, Any]] = {}
        self.specs: list[EvaluateSpec] = []

    async def submitted(self, step: Begun, spec: EvaluateSpec) -> Job:
        job = Job(JobName("p", f"job-{len(self.specs)}"), spec, RunName("p", f"run-{len(self.specs)}"))
        self._details[job.name] = await self._kind.validate(spec)
        self.specs.append(spec)
        return job

    async def succeeded(self, step: Begun, job: Job) -> Run:
        details = self._details[job.name]
        for model in details["models"].values():
            path = self._folder / model["uri"].removeprefix("s3://")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(await self._stored.get(artifact_key(model["sha256"])))
        launch = self._kind.launch(job, details, 1)
        outcome = run_here(LaunchSpec.from_json(launch.files[SPEC]), self._files)
        assert outcome.succeeded, outcome.error_message
        for one in outcome.artifacts:
            await self._stored.put(artifact_key(one.sha256), objects.read(self._files, one.uri))
        return Run(job.run, job.spec.experiment, artifacts=outcome.artifacts)
