"""`TrialStore` in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from flywheel_common.paging import Page, cut, decode_token
from flywheel_job.outcome import Outcome
from flywheel_job.tuning.trial import Trial
from flywheel_trainer.fakes.tracking import MemoryTracking
from flywheel_trainer.jobs.job import JobName
from flywheel_trainer.runs.run import Run
from flywheel_trainer.trials.errors import InvalidTrial
from flywheel_trainer.trials.run_state import ended_run_state, params_of
from flywheel_trainer.trials.trial_name import run_of


class MemoryTrials:
    """`TrialStore` over a `MemoryTracking`."""

    def __init__(self, tracking: MemoryTracking) -> None:
        self._tracking = tracking

    async def record(
        self, job: JobName, trial: Trial, outcome: Outcome | None, attempt: str, now: datetime
    ) -> Trial:
        active = self._tracking.jobs[job].job
        number = self._tracking.check_attempt(attempt, active.run)
        trials = self._tracking.trials.setdefault(job, {})
        known = trials.get(trial.number)
        if known is not None and known.ended:
            return known
        run = run_of(active.run, trial.number)
        if known is None:
            if trial.number != len(trials):
                raise InvalidTrial(f"Trial {trial.number} does not follow the {len(trials)} stored ones.")
            created = Run(
                run,
                active.spec.experiment,
                training_set=active.spec.training_set,
                job=str(job),
                params=params_of(trial),
                parent_run=str(active.run),
            )
            self._tracking.add_run(created, now)
        started = now if known is None else known.started_at
        trials[trial.number] = replace(trial, started_at=started, ended_at=now if trial.ended else None)
        if trial.ended and outcome is not None:
            record = self._tracking.runs[run]
            record.drop_replaced(number)
            record.run = replace(
                record.run,
                params={**record.run.params, **outcome.params},
                artifacts=outcome.artifacts,
                code_version=outcome.code_version,
                environment=outcome.environment,
                state=ended_run_state(trial.state),
                error_message=outcome.error_message,
                ended_at=now,
            )
        return trials[trial.number]

    async def list(self, job: JobName, size: int, token: str) -> Page[Trial]:
        (after,) = decode_token(token, query=str(job)) or [-1]
        rows = [one for one in await self.all(job) if one.number > int(str(after))]
        return cut(rows[: size + 1], size, lambda one: (one.number,), query=str(job))

    async def all(self, job: JobName) -> Sequence[Trial]:
        trials = self._tracking.trials.get(job, {})
        return [trials[number] for number in sorted(trials)]

    async def get(self, job: JobName, number: int) -> Trial | None:
        return self._tracking.trials.get(job, {}).get(number)
