"""The kind TUNE: trains a TRAIN specification in trials with different parameters."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from flywheel_job.outcome import Outcome
from flywheel_job.tuning.launch import TuneLaunch
from flywheel_trainer.jobs.files import SPEC
from flywheel_trainer.jobs.job import Job
from flywheel_trainer.jobs.kinds import Launch
from flywheel_trainer.jobs.limits import Limits
from flywheel_trainer.jobs.resources import Request
from flywheel_trainer.jobs.train import TrainKind
from flywheel_trainer.jobs.train_spec import check_spec
from flywheel_trainer.jobs.tune_spec import TuneSpec, check_tune_spec

DRIVER = "flywheel_job.tuning"
"""Module that an attempt runs."""
FINISHED = "finished_trials"
"""Metric of the job's run whose last step is the number of trials that have ended."""


class TuneKind:
    """`Kind` of TUNE jobs; a trial is what a TRAIN job would run."""

    def __init__(self, train: TrainKind) -> None:
        self._train = train

    async def validate(self, spec: TuneSpec) -> Mapping[str, Any]:
        check_tune_spec(spec)
        check_spec(spec.base)
        # Without a check of a built-in recipe's parameters, because those of a trial are added to them.
        return await self._train.find_inputs(spec.base)

    def request(self, spec: TuneSpec) -> Request:
        """The workers of all trials that run at the same time."""
        one = self._train.request(spec.base)
        return replace(one, workers=one.workers * spec.settings.at_once)

    def limits(self, spec: TuneSpec) -> Limits:
        return spec.base.limits

    def launch(self, job: Job, details: Mapping[str, Any], attempt: int) -> Launch:
        spec = job.spec
        launch = TuneLaunch(self._train.launch_spec(job, spec.trained, details, attempt), spec.settings)
        command = self._train.command(job, attempt, DRIVER, launch.base.requirements)
        reads = self._train.inputs(launch.base, details)
        return Launch({SPEC: launch.to_json()}, command, reads=reads)

    def progress(self, job: Job, steps: Mapping[str, int]) -> Mapping[str, Any]:
        return {
            "done": steps.get(FINISHED, 0),
            "total": job.spec.settings.trial_count,
            "unit": "trial",
        }

    async def conclude(
        self, read: Callable[[str], Awaitable[bytes | None]]
    ) -> tuple[Outcome | None, Outcome | None]:
        return await self._train.conclude(read)
