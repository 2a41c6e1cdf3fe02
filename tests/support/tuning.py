"""Workers and stored trials of a TUNE job in the test's process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from pyarrow import fs

from flywheel_job import objects
from flywheel_job.driver import execute, failure_of
from flywheel_job.launch import LaunchSpec
from flywheel_job.outcome import MetricPoint, Outcome
from flywheel_job.tuning.driver import Ended, Lost, Reported
from flywheel_job.tuning.trial import Trial
from flywheel_job.worker import call

Evaluate = Callable[[LaunchSpec], Mapping[str, float] | Exception]


class Killed(BaseException):
    """The end of the driver's process."""


class StoredTrials:
    """`Trials` in memory; the process dies before or after the writes whose numbers are in `kill_at`."""

    def __init__(self, kill_at: Mapping[int, str] | None = None, store: fs.FileSystem | None = None) -> None:
        self.trials: dict[int, Trial] = {}
        self.writes = 0
        self.kill_at = dict(kill_at or {})
        self._store = store

    def load(self) -> list[Trial]:
        return [self.trials[number] for number in sorted(self.trials)]

    def record(self, trial: Trial, outcome: Outcome | None = None) -> None:
        self.writes += 1
        when = self.kill_at.pop(self.writes, "")
        if when == "before":
            raise Killed
        stored = self.trials.get(trial.number)
        assert stored is None or not stored.ended or stored == trial
        self.trials[trial.number] = trial
        if when == "after":
            raise Killed

    def forget_checkpoints(self, folder: str) -> None:
        if self._store is not None:
            objects.delete(self._store, f"s3://b/checkpoints/{folder}")


class FunctionWorkers:
    """`Workers` that compute the metrics of a trial when they are waited for, oldest first."""

    gate = "gate"

    def __init__(self, evaluate: Evaluate, losses: int = 0) -> None:
        self._evaluate, self._losses = evaluate, losses
        self._queue: list[tuple[int, LaunchSpec]] = []
        self.most_at_once = 0

    def start(self, number: int, spec: LaunchSpec) -> None:
        self._queue.append((number, spec))
        self.most_at_once = max(self.most_at_once, len(self._queue))

    def wait(self) -> Reported | Ended | Lost:
        number, spec = self._queue.pop(0)
        if self._losses:
            self._losses -= 1
            return Lost(number, "killed")
        found = self._evaluate(spec)
        if isinstance(found, Exception):
            return Ended(number, Outcome.failed(failure_of(found)))
        return Ended(number, Outcome(True, points=tuple(MetricPoint(k, 1, v, 0) for k, v in found.items())))

    def answer(self, number: int, *, stop: bool) -> None:
        raise AssertionError("no trial has reported")


def run_here(spec: LaunchSpec, store: fs.FileSystem) -> Outcome:
    """The outcome of a job whose only rank runs in this process."""

    def group(one: LaunchSpec) -> None:
        objects.write(store, one.result_uri, call(one.function, one, store).to_json())

    return execute(spec, store, group)


class CodeWorkers(FunctionWorkers):
    """Workers that run the training code of the trial in this process."""

    def __init__(self, store: fs.FileSystem) -> None:
        super().__init__(lambda _: {})
        self._store = store
        self.specs: list[LaunchSpec] = []

    def wait(self) -> Reported | Ended | Lost:
        number, spec = self._queue.pop(0)
        self.specs.append(spec)
        try:
            return Ended(number, run_here(replace(spec), self._store))
        except Exception as error:
            return Ended(number, Outcome.failed(failure_of(error)))


class Points:
    """Takes the metrics of the job's run."""

    def __init__(self) -> None:
        self.points: list[MetricPoint] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.points += [MetricPoint(key, step, value, 0) for key, value in values.items()]
