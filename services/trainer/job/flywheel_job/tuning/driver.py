"""Drives the trials of a TUNE job: starts what the search suggests, and stores what the trials result in."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from flywheel_job.driver import failure_of
from flywheel_job.errors import NoSuccessfulTrial, TooManyFailedTrials, TrialStopped, UnknownMetric
from flywheel_job.launch import LaunchSpec
from flywheel_job.outcome import MetricPoint, Outcome
from flywheel_job.tuning.launch import TuneLaunch
from flywheel_job.tuning.population import PopulationSearch
from flywheel_job.tuning.search import OptunaSearch, Search, Work
from flywheel_job.tuning.settings import Population, TuneSettings
from flywheel_job.tuning.trial import Trial, TrialState, best_trials

SAME_FOR_ALL = frozenset({"INVALID_FUNCTION", "INVALID_SOURCE", "MISSING_PACKAGE", "UNKNOWN_DATA_SET"})
"""Reasons of failures that every trial would have: they end the job at once."""
MAX_LOSSES = 3
"""How often the process of a trial may be lost before the trial has failed."""
FINISHED = "finished_trials"
"""Metric of the job's run; its steps are the numbers of trials that have ended."""


@dataclass(frozen=True)
class Reported:
    """A trial logged the first objective, and waits for `answer`."""

    number: int
    step: int
    value: float


@dataclass(frozen=True)
class Ended:
    """A worker has ended."""

    number: int
    outcome: Outcome


@dataclass(frozen=True)
class Lost:
    """The process of a worker was lost."""

    number: int
    message: str


class Workers(Protocol):
    """Runs pieces of work at the same time.

    - `wait` returns the next event, and waits for it.
    - `answer` tells a trial that has reported a value whether it must stop.
    """

    gate: str
    """Name under which workers reach `answer`."""

    def start(self, number: int, spec: LaunchSpec) -> None: ...

    def wait(self) -> Reported | Ended | Lost: ...

    def answer(self, number: int, *, stop: bool) -> None: ...


class Trials(Protocol):
    """The stored trials of the job.

    - `load` returns all of them, by number.
    - `record` stores a trial, with the outcome of one that has ended, and returns when it is durable. It
      waits while the store is away, and raises if the attempt of this process has ended.
    - `forget_checkpoints` deletes a folder below that of the job's checkpoints.
    """

    def load(self) -> list[Trial]: ...

    def record(self, trial: Trial, outcome: Outcome | None = None) -> None: ...

    def forget_checkpoints(self, folder: str) -> None: ...


class Progress(Protocol):
    """Takes metrics of the job's run."""

    points: list[MetricPoint]

    def log(self, step: int, values: Mapping[str, float]) -> None: ...


def search_of(settings: TuneSettings, trials: Sequence[Trial]) -> Search:
    """The search that these trials belong to."""
    if isinstance(settings.algorithm, Population):
        return PopulationSearch(settings, trials)
    return OptunaSearch(settings, trials)


class Study:
    """One execution of the search, which continues from the stored trials."""

    def __init__(self, launch: TuneLaunch, trials: Trials, workers: Workers, progress: Progress) -> None:
        self._launch, self._trials, self._workers, self._progress = launch, trials, workers, progress
        self._settings = launch.settings
        stored = trials.load()
        self._search = search_of(self._settings, stored)
        self._ended = {trial.number: trial for trial in stored if trial.ended}
        self._running: dict[int, Work] = {}
        self._losses: dict[int, int] = {}
        self._continued = {trial.number for trial in stored if not trial.ended}
        """Trials that may begin from a checkpoint of an earlier execution."""

    def run(self) -> Outcome:
        """Run all trials and return the outcome of the job.

        Raises TooManyFailedTrials, NoSuccessfulTrial, UnknownMetric, and an error that all trials would have.
        """
        self._check_failures()
        while True:
            while len(self._running) < self._settings.parallel_trials:
                work = self._search.next()
                if work is None:
                    break
                self._start(work)
            if not self._running:
                break
            match self._workers.wait():
                case Reported(number, step, value):
                    self._workers.answer(number, stop=self._search.report(number, step, value))
                case Ended(number, outcome):
                    self._end(number, outcome)
                case Lost(number, message):
                    self._lose(number, message)
        best = best_trials(self._ended.values(), self._settings.objectives)
        if not any(trial.state is TrialState.SUCCEEDED for trial in self._ended.values()):
            raise NoSuccessfulTrial(f"None of {len(self._ended)} trials succeeded. {self._last_error()}")
        names = ", ".join(str(trial.number) for trial in best) or "none breaks no constraint"
        return Outcome(succeeded=True, points=tuple(self._progress.points), params={"best_trial": names})

    def _start(self, work: Work) -> None:
        self._trials.record(work.trial)
        self._launch_work(work)

    def _launch_work(self, work: Work) -> None:
        number = work.trial.number
        if work.until_step:  # a segment begins from the checkpoint before it, never from within
            self._trials.forget_checkpoints(work.checkpoints)
        spec = self._launch.trial(
            work.trial,
            until_step=work.until_step,
            checkpoints=work.checkpoints,
            initial=work.initial_checkpoint,
            export=work.export,
            gate=self._workers.gate,
        )
        self._running[number] = work
        self._workers.start(number, spec)

    def _end(self, number: int, outcome: Outcome) -> None:
        work = self._running.pop(number)
        if outcome.succeeded and self._absent(outcome) and number in self._continued:
            # It restored a checkpoint after which it logs a metric no more.
            self._continued.remove(number)
            self._trials.forget_checkpoints(work.checkpoints)
            self._launch_work(work)
            return
        result, error = self._result(self._search.trial(number), outcome)
        trial = self._search.end(result)
        self._trials.record(trial, outcome)
        for folder in getattr(self._search, "unused_checkpoints", list)():
            self._trials.forget_checkpoints(folder)
        if trial.ended:
            self._ended[number] = trial
            self._report_progress()
        if error is not None:
            raise error
        self._check_failures()

    def _lose(self, number: int, message: str) -> None:
        """Repeat a piece whose process was lost; it continues from its last checkpoint."""
        self._losses[number] = self._losses.get(number, 0) + 1
        self._continued.add(number)
        if self._losses[number] < MAX_LOSSES:
            self._launch_work(self._running[number])
            return
        lost = f"The process of the trial was lost {MAX_LOSSES} times: {message}"
        self._end(number, Outcome(False, "WORKER_LOST", lost))

    def _result(self, trial: Trial, outcome: Outcome) -> tuple[Trial, Exception | None]:
        """The trial with the result of a worker, and the error that ends the job, if there is one."""
        if not outcome.succeeded:
            stopped = outcome.error_reason == TrialStopped.reason
            failed = replace(
                trial,
                state=TrialState.STOPPED if stopped else TrialState.FAILED,
                error_reason="" if stopped else outcome.error_reason,
                error_message="" if stopped else outcome.error_message,
            )
            fatal = outcome.error_reason in SAME_FOR_ALL
            return failed, _FatalError(outcome.error_reason, outcome.error_message) if fatal else None
        last, absent = last_values(outcome), self._absent(outcome)
        if absent:
            logged = ", ".join(last) or "none"
            error = UnknownMetric(f"The trial logged no metric {absent[0]!r}; it logged: {logged}.")
            failed = replace(
                trial,
                state=TrialState.FAILED,
                error_reason=error.reason,
                error_message=error.message,
            )
            return failed, error
        return (
            replace(
                trial,
                state=TrialState.SUCCEEDED,
                last_step=max(point.step for point in outcome.points),
                values=tuple(last[one.metric] for one in self._settings.objectives),
                violations=tuple(one.violation(last[one.metric]) for one in self._settings.constraints),
            ),
            None,
        )

    def _absent(self, outcome: Outcome) -> list[str]:
        """The metrics that a successful trial should have logged and did not."""
        last = last_values(outcome)
        return [name for name in self._settings.metrics if name not in last]

    def _report_progress(self) -> None:
        finished = len(self._ended)
        values = {FINISHED: float(finished)}
        if len(self._settings.objectives) == 1:
            for best in best_trials(self._ended.values(), self._settings.objectives):
                values[f"best_{self._settings.objectives[0].metric}"] = best.values[0]
        self._progress.log(finished, values)

    def _check_failures(self) -> None:
        failed = [trial for trial in self._ended.values() if trial.state is TrialState.FAILED]
        if len(failed) >= self._settings.max_failed_trials:
            raise TooManyFailedTrials(f"{len(failed)} trials failed. {self._last_error()}")

    def _last_error(self) -> str:
        failed = [trial for trial in self._ended.values() if trial.state is TrialState.FAILED]
        last = failed[-1] if failed else None
        return f"Trial {last.number}: {last.error_reason}: {last.error_message}" if last else ""


class _FatalError(Exception):
    """An error of a trial that all others would have, with its reason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


def last_values(outcome: Outcome) -> dict[str, float]:
    """The value of each metric at its last step."""
    steps: dict[str, Any] = {}
    for point in outcome.points:
        if point.key not in steps or point.step >= steps[point.key].step:
            steps[point.key] = point
    return {key: point.value for key, point in steps.items()}


def conclude(study: Study) -> Outcome:
    """Run a study; an error becomes the outcome of the job."""
    try:
        return study.run()
    except _FatalError as error:
        return Outcome(succeeded=False, error_reason=error.reason, error_message=error.message)
    except Exception as error:  # noqa: BLE001 - the outcome contains every failure
        traceback.print_exc()
        return Outcome.failed(failure_of(error))
