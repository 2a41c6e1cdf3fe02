"""The state of runs and jobs in memory, shared because a job and its run are stored together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from flywheel_common.granted.access import Access
from flywheel_common.granted.errors import AttemptEnded
from flywheel_common.system_metrics import SYSTEM
from flywheel_job.outcome import MetricPoint
from flywheel_job.tuning.trial import Trial, TrialState
from flywheel_trainer.fakes.requests import MemoryRequests
from flywheel_trainer.jobs.job import ENDED, JobName
from flywheel_trainer.jobs.ports import ActiveJob
from flywheel_trainer.runs.errors import (
    ForeignRun,
    RunContinued,
    RunDeleted,
    RunEnded,
    RunExists,
    UnknownExperiment,
    UnknownRun,
)
from flywheel_trainer.runs.lease import JOB_ENDED_FIRST
from flywheel_trainer.runs.metric_points import LoggedPoints
from flywheel_trainer.runs.run import Experiment, ExperimentName, MetricSummary, Run, RunName, RunState


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
        self.summarize()
        return LoggedPoints(stored, ignored)

    def summarize(self) -> None:
        """Compute the last values and the extremes of the metrics."""
        steps = self.last_steps()
        summaries = {}
        for key, last in steps.items():
            values = [p.value for p in self.points.values() if p.key == key and not math.isnan(p.value)]
            summaries[key] = MetricSummary(min(values, default=math.nan), max(values, default=math.nan), last)
        metrics = {key: self.points[key, step].value for key, step in steps.items()}
        self.run = replace(self.run, metrics=metrics, summaries=summaries)

    def rewind(self, step: int) -> None:
        """Remove the points after a step, except metrics of the machine."""
        for at in [at for at in self.points if at[1] > step and not at[0].startswith(SYSTEM)]:
            del self.points[at], self.attempts[at]
        self.summarize()

    def reopen(self, now: datetime) -> None:
        """Make the run RUNNING."""
        self.heartbeat = now
        self.run = replace(self.run, state=RunState.RUNNING, ended_at=None, error_message="")

    def last_steps(self) -> dict[str, int]:
        """The last step of every metric, in its latest attempt."""
        order = sorted(self.points, key=lambda at: (at[0], self.attempts[at], at[1]))
        return dict(order)

    def progress_steps(self) -> dict[str, int]:
        """The last steps without those of metrics of the machine."""
        return {key: step for key, step in self.last_steps().items() if not key.startswith(SYSTEM)}

    def drop_replaced(self, attempt: int) -> None:
        """Remove points of earlier attempts from the step on at which this attempt began, by metric."""
        begins: dict[str, int] = {}
        for key, step in sorted(at for at in self.points if self.attempts[at] == attempt):
            begins.setdefault(key, step)
        for at in [at for at in self.points if self.attempts[at] < attempt]:
            if at[0] in begins and at[1] >= begins[at[0]]:
                del self.points[at], self.attempts[at]
        self.summarize()


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
        self.access: dict[str, Access] = {}
        """By engine id of the attempt."""
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
        """Raises UnknownExperiment, RunExists, UnknownRun."""
        if ExperimentName(run.name.project, run.experiment) not in self.experiments:
            raise UnknownExperiment.of(run.experiment)
        if run.name in self.runs:
            raise RunExists.of(run.name)
        if run.parent_run:
            parent = RunName.parse(run.parent_run)
            if parent.project != run.name.project or parent not in self.runs:
                raise UnknownRun.of(parent)
        started = replace(run, state=RunState.RUNNING, started_at=min(run.started_at or now, now))
        self.runs[run.name] = RunRecord(started, now)
        return started

    def report(self, name: RunName, generation: int, now: datetime) -> RunRecord:
        """A run whose process reports. Raises UnknownRun, RunDeleted, RunContinued, RunEnded."""
        record = self.runs.get(name)
        if record is None:
            raise UnknownRun.of(name)
        run = record.run
        if run.deleted_at is not None:
            raise RunDeleted.of(name)
        if generation not in (0, run.generation):
            raise RunContinued.of(name, run.generation)
        if run.state is not RunState.RUNNING and (run.state is not RunState.LOST or run.job):
            raise RunEnded.of(name, run.state)
        record.reopen(now)
        return record
