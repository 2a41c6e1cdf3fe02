"""The state of runs and jobs in memory, shared because a job and its run are stored together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from flywheel_job.outcome import MetricPoint
from flywheel_trainer.fakes.requests import MemoryRequests
from flywheel_trainer.jobs.job import ENDED, JobName
from flywheel_trainer.jobs.ports import ActiveJob
from flywheel_trainer.runs.errors import AttemptEnded, ForeignRun, RunEnded, UnknownExperiment, UnknownRun
from flywheel_trainer.runs.metric_points import LoggedPoints
from flywheel_trainer.runs.run import Experiment, ExperimentName, Run, RunName, RunState


@dataclass
class RunRecord:
    """A run with its last heartbeat and its metric points."""

    run: Run
    heartbeat: datetime
    points: dict[tuple[str, int], MetricPoint] = field(default_factory=dict)

    def clear(self) -> None:
        """Remove all points, because another attempt begins."""
        self.points.clear()
        self.run = replace(self.run, metrics={})

    def add(self, points: Sequence[MetricPoint]) -> LoggedPoints:
        """Add points, keeping the first value of a (key, step)."""
        before, ignored = len(self.points), 0
        for point in points:
            kept = self.points.setdefault((point.key, point.step), point).value
            both_nan = math.isnan(kept) and math.isnan(point.value)
            ignored += kept != point.value and not both_nan
        last_values = {key: self.points[key, step].value for key, step in sorted(self.points)}
        self.run = replace(self.run, metrics=last_values)
        return LoggedPoints(stored=len(self.points) - before, ignored=ignored)


class MemoryTracking:
    """Experiments, runs, jobs and the requests that created them."""

    def __init__(self) -> None:
        self.requests = MemoryRequests()
        self.experiments: dict[ExperimentName, Experiment] = {}
        self.runs: dict[RunName, RunRecord] = {}
        self.jobs: dict[JobName, ActiveJob] = {}
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
        return any(a.job.run == run and a.job.state not in ENDED for a in self.jobs.values())

    def check_attempt(self, attempt: str, run: RunName) -> None:
        """Raises AttemptEnded, ForeignRun."""
        for active in self.jobs.values():
            if active.attempt is not None and active.attempt.engine_id == attempt:
                if active.job.run != run:
                    raise ForeignRun.of(attempt, run)
                return
        raise AttemptEnded.of(attempt)

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
