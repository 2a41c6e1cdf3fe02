"""Calls about tuning jobs and their trials."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flywheel.connection import request_id
from flywheel.errors import NotFound
from flywheel.model_calls import ModelCalls
from flywheel.paging import list_items
from flywheel.train_job import TrainJob, pack_job
from flywheel.tune_job import TuneJob, settings_message, tune_spec
from flywheel_protos.trainer.v1 import trainer_pb2, tuning_pb2


@dataclass(frozen=True)
class TuneResult:
    """A tuning job that has ended."""

    job: trainer_pb2.Job
    best: list[tuning_pb2.Trial] = field(default_factory=list)
    """With one objective at most one trial; empty if every trial breaks a constraint."""

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the first of the best trials."""
        found: dict[str, Any] = json.loads(self.best[0].params_json)
        return found


class TuneCalls(ModelCalls):
    """Starts, reads and registers what tuning jobs try."""

    async def start_tuning(self, job: TuneJob) -> trainer_pb2.Job:
        """Submits a tuning job. Raises SourceError before anything is sent."""
        settings_message(job)
        base = job.job
        if isinstance(base, TrainJob):
            packed = await asyncio.to_thread(pack_job, base)
            if packed.archive is not None:
                await self.upload_source(packed.archive)
            base = self.code_spec(packed)
        return await self.submit_tuning(tune_spec(job, base))

    async def submit_tuning(self, spec: trainer_pb2.TuneSpec) -> trainer_pb2.Job:
        """Submits a specification whose source archive is stored already, or which has none."""
        request = trainer_pb2.SubmitJobRequest(
            parent=self.parent, job=trainer_pb2.Job(tune=spec), request_id=request_id()
        )
        return (await self.trainer.SubmitJob(request)).job

    async def wait_tuning(
        self, job: str, progress: Callable[[trainer_pb2.Job], None] | None = None
    ) -> TuneResult:
        """Waits until a tuning job has ended. Raises JobFailedError."""
        watch = self.trainer.WatchJob(trainer_pb2.WatchJobRequest(name=self.path("jobs", job)))
        ended = await self.wait(watch, "job", progress)
        return TuneResult(ended, await self.best_trials(ended.name))

    async def tune(
        self, job: TuneJob, progress: Callable[[trainer_pb2.Job], None] | None = None
    ) -> TuneResult:
        """Runs a tuning job and returns its best trials. Raises SourceError, JobFailedError."""
        return await self.wait_tuning((await self.start_tuning(job)).name, progress)

    async def trials(self, job: str) -> list[tuning_pb2.Trial]:
        """All trials of a job, by number."""
        request = tuning_pb2.ListTrialsRequest(parent=self.path("jobs", job))
        return (await list_items(self.trainer.ListTrials, request, "trials")).items

    async def best_trials(self, job: str) -> list[tuning_pb2.Trial]:
        """The best trials of a job so far."""
        request = tuning_pb2.ListBestTrialsRequest(parent=self.path("jobs", job))
        return list((await self.trainer.ListBestTrials(request)).trials)

    async def register_trial(self, trial: tuning_pb2.Trial, model: str) -> str:
        """Registers the model that a trial exported, and returns the name of the version."""
        request = tuning_pb2.RegisterTrialRequest(
            trial=trial.name, model=self.path("models", model), request_id=request_id()
        )
        return str((await self.trainer.RegisterTrial(request)).model_version)

    async def replay_trial(
        self, trial: tuning_pb2.Trial, progress: Callable[[trainer_pb2.Job], None] | None = None
    ) -> trainer_pb2.Run:
        """Trains a trial again in a TRAIN job of its own, and returns the run.

        A trial of population-based training is replayed with the parameters along its checkpoints.
        """
        name = trial.name.rpartition("/trials/")[0]
        job = (await self.trainer.GetJob(trainer_pb2.GetJobRequest(name=name))).job
        spec = trainer_pb2.TrainSpec()
        spec.CopyFrom(job.tune.base)
        if not spec.HasField("code"):
            for key, value in json.loads(trial.params_json).items():
                if isinstance(value, list):
                    getattr(spec.tabular, key)[:] = value
                else:
                    setattr(spec.tabular, key, value)
            if trial.segments:
                trials = {one.number: one for one in await self.trials(name)}
                spec.tabular.schedule.extend(schedule(trials, trial.number))
                spec.tabular.epochs = spec.tabular.schedule[-1].until_step
        elif trial.segments:
            trials = {one.number: one for one in await self.trials(name)}
            spec.code.schedule.extend(schedule(trials, trial.number))
        else:
            params = json.loads(spec.code.params_json or "{}") | json.loads(trial.params_json)
            spec.code.params_json = json.dumps(params, sort_keys=True)
            if isinstance(params.get("seed"), int):
                spec.code.seed = params["seed"]
        return await self.train(spec, progress)


def schedule(trials: dict[int, tuning_pb2.Trial], number: int) -> list[trainer_pb2.ScheduleSegment]:
    """The segments whose checkpoints follow each other up to the end of a trial. Raises NotFound."""
    if number not in trials or not trials[number].segments:
        raise NotFound(f"Trial {number} has no segments.")
    found: list[trainer_pb2.ScheduleSegment] = []
    for generation in range(len(trials[number].segments) - 1, -1, -1):
        segment = trials[number].segments[generation]
        found.insert(
            0, trainer_pb2.ScheduleSegment(until_step=segment.until_step, params_json=segment.params_json)
        )
        number = segment.source_trial
    return found
