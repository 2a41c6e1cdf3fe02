"""The state of runs and jobs in memory, shared because a job and its run are stored together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from flywheel_job.outcome import MetricPoint
from flywheel_job.tuning.trial import Trial, TrialState
from flywheel_trainer.fakes.requests import MemoryRequests
from flywheel_trainer.jobs.job import ENDED, JobName
from flywheel_trainer.jobs.ports import ActiveJob
from flywheel_trainer.runs.errors import AttemptEnded, ForeignRun, RunEnded, UnknownExperiment, UnknownRun
from flywheel_trainer.runs.lease import JOB_ENDED_FIRST
from flywheel_trainer.runs.metric_points import LoggedPoints
from flywheel_trainer.runs.run import Experiment, ExperimentName, Run, RunName, RunState


@dataclass
class RunRecord:
    """A run with its last heartbeat and its metric points."""

    run: Run
    heartbeat: datetime
    points: dict[tuple[str, int], MetricPoint] = field(default_factory=dict)

    attempts: dict[tuple[str, int], int] = field(default_factory=dict)
    """The attempt that wrote a point; 0: none."""

    def add(self, points: Sequence[MetricPoint], attempt: int = 0) -> LoggedPoints:
        """Add points; the first value of a (key, step) is kept, unless it is of an earlier attempt."""
        stored, ignored = 0, 0
        for point in points:
            at = point.key, point.step
            if self.attempts.get(at, -1) < attempt:
                self.points[at], self.attempts[at] = point, attempt
                stored += 1
            kept = self.points[at].value
            both_nan = math.isnan(kept) and math.isnan(point.value)
            ignored += kept != point.value and not both_nan
        self.run = replace(
            self.run, metrics={key: self.points[key, step].value for key, step in self.last_steps().items()}
        )
        return LoggedPoints(stored, ignored)

    def last_steps(self) -> dict[str, int]:
        """The last step of every metric, in its latest attempt."""
        order = sorted(self.points, key=lambda at: (at[0], self.attempts[at], at[1]))
        return dict(order)

    def drop_replaced(self, attempt: int) -> None:
        """Remove points of earlier attempts from the step on at which this attempt began, by metric."""
        begins: dict[str, int] = {}
        for key, step in sorted(at for at in self.points if self.attempts[at] == attempt):
            begins.setdefault(key, step)
        for at in [at for at in self.points if self.attempts[at] < attempt]:
            if at[0] in begins and at[1] >= begins[at[0]]:
                del self.points[at], self.attempts[at]


class MemoryTracking:
    """Experiments, runs, jobs and the requests that created them."""

    def __init__(self) -> None:
        self.requests = MemoryRequests()
        self.experiments: dict[ExperimentName, Experiment] = {}
        self.runs: dict[RunName, RunRecord] = {}
        self.jobs: dict[JobName, ActiveJob] = {}
        self.trials: dict[JobName, dict[int, Trial]] = {}
        self.closed_pipeline_runs: set[str] = set()
        """Names of pipeline runs that have ended or are to be cancelled."""
        self.supervisor_token = 0
        """Fencing token of the newest supervisor."""

    def change(self, name: JobName, **changes: Any) -> None:
        """Replace fields of a job."""
        self.jobs[name] = replace(self.jobs[name], job=replace(self.jobs[name].job, **changes))

    def close_pipeline_run(self, name: str) -> None:
        """Cancel the jobs of a pipeline run that ends or is to be cancelled."""
        self.closed_pipeline_runs.add(name)
        for active in list(self.jobs.values()):
            if active.job.pipeline_run == name and active.job.state not in ENDED:
                self.change(active.job.name, cancel_requested=True)

    def has_active_job(self, run: RunName) -> bool:
        """Whether a job that has not ended writes the run."""
        names = {str(run), self.runs[run].run.parent_run}
        return any(str(a.job.run) in names and a.job.state not in ENDED for a in self.jobs.values())

    def check_attempt(self, attempt: str, run: RunName) -> int:
        """The number of the attempt. Raises AttemptEnded, ForeignRun."""
        for active in self.jobs.values():
            if active.attempt is not None and active.attempt.engine_id == attempt:
                record = self.runs.get(run)
                own = record is not None and str(active.job.run) in (str(run), record.run.parent_run)
                if not own:
                    raise ForeignRun.of(attempt, run)
                return active.attempt.number
        raise AttemptEnded.of(attempt)

    def end_trials(self, name: JobName, now: datetime) -> None:
        """End the trials of a job that has ended, and their runs."""
        trials, parent = self.trials.get(name, {}), str(self.jobs[name].job.run)
        for number, trial in trials.items():
            if not trial.ended:
                trials[number] = replace(trial, state=TrialState.CANCELLED, ended_at=now)
        for record in self.runs.values():
            if record.run.parent_run == parent and record.run.state is RunState.RUNNING:
                record.run = replace(
                    record.run, state=RunState.CANCELLED, error_message=JOB_ENDED_FIRST, ended_at=now
                )

    def add_run(self, run: Run, now: datetime) -> Run:
        """Raises UnknownExperiment."""
        if ExperimentName(run.name.project, run.experiment) not in self.experiments:
            raise UnknownExperiment.of(run.experiment)
        started = replace(run, state=RunState.RUNNING, started_at=now)
        self.runs[run.name] = RunRecord(started, now)
        return started

    def running(self, name: RunName) -> RunRecord:
        """Raises UnknownRun, RunEnded."""
        record = self.runs.get(name)
        if record is None:
            raise UnknownRun.of(name)
        if record.run.state is not RunState.RUNNING:
            raise RunEnded.of(name, record.run.state)
        return record
