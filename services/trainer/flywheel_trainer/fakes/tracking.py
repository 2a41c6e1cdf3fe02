"""The state that runs and jobs share in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from flywheel_common.errors import FailedPrecondition, NotFound
from flywheel_trainer.fakes.requests import MemoryRequests
from flywheel_trainer.jobs.job import Job, JobName
from flywheel_trainer.recipes.outcome import MetricPoint
from flywheel_trainer.runs.errors import unknown_run
from flywheel_trainer.runs.run import Experiment, ExperimentName, Run, RunName, RunState


@dataclass
class _HeldRun:
    run: Run
    heartbeat: datetime
    points: dict[tuple[str, int], MetricPoint] = field(default_factory=dict)

    def add(self, points: Sequence[MetricPoint]) -> int:
        """The first value of a (key, step) stays; a run's metric is that of its highest step."""
        before = len(self.points)
        for point in points:
            self.points.setdefault((point.key, point.step), point)
        newest = {key: self.points[key, step].value for key, step in sorted(self.points)}
        self.run = replace(self.run, metrics=newest)
        return len(self.points) - before


class MemoryTracking(MemoryRequests):
    """What runs and jobs share: a job and its run are made and ended together."""

    def __init__(self) -> None:
        super().__init__()
        self.experiments: dict[ExperimentName, Experiment] = {}
        self.runs: dict[RunName, _HeldRun] = {}
        self.jobs: dict[JobName, tuple[Job, Mapping[str, Any]]] = {}

    def add_run(self, run: Run, now: datetime) -> Run:
        if ExperimentName(run.name.project, run.experiment) not in self.experiments:
            raise NotFound(
                f"Experiment {run.experiment!r} does not exist: create it first.", reason="UNKNOWN_EXPERIMENT"
            )
        started = replace(run, state=RunState.RUNNING, started_at=now)
        self.runs[run.name] = _HeldRun(started, now)
        return started

    def running(self, name: RunName) -> _HeldRun:
        held = self.runs.get(name)
        if held is None:
            raise unknown_run(name)
        if held.run.state is not RunState.RUNNING:
            raise FailedPrecondition(
                f"Run {str(name)!r} has ended as {held.run.state}: start a new one.",
                reason="RUN_ENDED",
                state=held.run.state,
            )
        return held
