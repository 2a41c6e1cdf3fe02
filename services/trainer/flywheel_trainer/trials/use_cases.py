"""Use cases of trials."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from flywheel_common.clock import Clock
from flywheel_common.paging import Page
from flywheel_common.storage.objects import ObjectStore
from flywheel_job.artifacts import MODEL, REPORT
from flywheel_job.evaluation.importance import importances_of
from flywheel_job.outcome import Outcome
from flywheel_job.tuning.trial import Trial, best_trials
from flywheel_trainer.jobs.job import Job, JobName
from flywheel_trainer.jobs.tune_spec import TuneSpec
from flywheel_trainer.jobs.use_cases import Jobs
from flywheel_trainer.jobs.verified import read_verified, stream_verified
from flywheel_trainer.pipelines.artifacts import version_fields
from flywheel_trainer.pipelines.ports import FeaturePeer, RegistryPeer
from flywheel_trainer.pipelines.run_report import described
from flywheel_trainer.runs.errors import ForeignRun
from flywheel_trainer.runs.use_cases import Runs
from flywheel_trainer.trials.errors import InvalidTrial, NoModel, NoTuneJob, UnknownTrial
from flywheel_trainer.trials.ports import TrialStore
from flywheel_trainer.trials.record import check_trial
from flywheel_trainer.trials.trial_name import TrialName, run_of


class Trials:
    """Records, lists and registers trials."""

    def __init__(
        self,
        store: TrialStore,
        jobs: Jobs,
        runs: Runs,
        objects: ObjectStore,
        feature: FeaturePeer,
        registry: RegistryPeer,
        clock: Clock,
    ) -> None:
        self._store, self._jobs, self._runs, self._objects = store, jobs, runs, objects
        self._feature, self._registry, self._clock = feature, registry, clock

    async def record(
        self, name: JobName, trial: Trial, outcome_json: bytes, attempt: str
    ) -> tuple[Job, Trial]:
        """Store a trial that the driver of an attempt sends.

        Raises UnknownJob, NoTuneJob, InvalidTrial, AttemptEnded, and ForeignRun for other callers.
        """
        job = await self.job(name)
        if not attempt:
            raise ForeignRun("Only the attempt of a TUNE job may record its trials.")
        assert isinstance(job.spec, TuneSpec)
        check_trial(trial, job.spec.settings)
        try:
            outcome = Outcome.from_json(outcome_json) if outcome_json else None
        except ValueError as error:
            raise InvalidTrial(f"outcome_json of trial {trial.number} is {error}.") from error
        if trial.ended and outcome is None:
            raise InvalidTrial(f"Trial {trial.number} has ended, but outcome_json is empty.")
        return job, await self._store.record(name, trial, outcome, attempt, self._clock.now())

    async def list(self, name: JobName, size: int, token: str, attempt: str = "") -> tuple[Job, Page[Trial]]:
        """Raises UnknownJob, NoTuneJob, and ForeignRun for an attempt of another job."""
        job = await self.job(name)
        if attempt and attempt not in {one.engine_id for one in job.attempts}:
            raise ForeignRun.of(attempt, job.run)
        return job, await self._store.list(name, size, token)

    async def best(self, name: JobName) -> tuple[Job, Sequence[Trial]]:
        """The best trials so far. Raises UnknownJob, NoTuneJob."""
        job = await self.job(name)
        assert isinstance(job.spec, TuneSpec)
        trials, objectives = await self._store.all(name), job.spec.settings.objectives
        return job, await asyncio.to_thread(best_trials, trials, objectives)

    async def register(self, name: TrialName, model: str, request_id: str) -> str:
        """Register the model of a trial, and return the name of the version.

        A repeated request continues where an earlier one stopped: the registry knows it by its id.
        Raises UnknownJob, NoTuneJob, UnknownTrial, NoModel, UnsupportedModel, and the errors of the registry.
        """
        job = await self.job(name.job_name)
        trial = await self._store.get(name.job_name, name.number)
        if trial is None:
            raise UnknownTrial.of(name)
        run = await self._runs.get(run_of(job.run, trial.number))
        artifacts = {artifact.name: artifact for artifact in run.artifacts}
        if MODEL not in artifacts or REPORT not in artifacts:
            raise NoModel(f"{run.name} of trial {trial.number} ({trial.state}) has no {MODEL}.")
        report = json.loads(await read_verified(self._objects, artifacts[REPORT].sha256))
        output, _ = described(str(run.name), report)
        training_set = await self._feature.get(report["training_set"])
        metrics = run.results | importances_of(report["metrics"])
        version = await self._registry.create_version(
            model,
            version_fields(report, output, artifacts)
            | {
                "training_run": str(run.name),
                "metrics": metrics,
                "feature_set": training_set.feature_set,
                "training_dataset": training_set.name,
                "cause_alert": "",
                "pipeline_run": "",
            },
            request_id,
        )
        for artifact in artifacts.values():
            pieces = stream_verified(self._objects, artifact.sha256)
            await self._registry.upload(version, artifact.name, pieces)
        return version

    async def job(self, name: JobName) -> Job:
        """Raises UnknownJob, NoTuneJob."""
        job = await self._jobs.get(name)
        if not isinstance(job.spec, TuneSpec):
            raise NoTuneJob.of(name)
        return job
