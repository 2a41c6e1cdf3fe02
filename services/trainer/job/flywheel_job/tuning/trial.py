"""A trial of a TUNE job, and which trials are best."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

import numpy as np

from flywheel_job.tuning.settings import Direction, Objective


class TrialState(StrEnum):
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    STOPPED = "STOPPED"
    """Ended by early stopping."""
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    """The job ended before the trial."""


@dataclass(frozen=True)
class Segment:
    """A finished part of a trial of population-based training (TrialSegment in the API)."""

    generation: int
    source_trial: int | None
    params_json: str
    until_step: int
    value: float

    @property
    def params(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.params_json)
        return found


@dataclass(frozen=True)
class Trial:
    """One trial (Trial in the API)."""

    number: int
    params_json: str = "{}"
    state: TrialState = TrialState.RUNNING
    values: tuple[float, ...] = ()
    violations: tuple[float, ...] = ()
    last_step: int = 0
    last_value: float | None = None
    rungs: Mapping[int, float] = field(default_factory=dict)
    segments: tuple[Segment, ...] = ()
    error_reason: str = ""
    error_message: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def params(self) -> dict[str, Any]:
        """The parameters from the search space."""
        found: dict[str, Any] = json.loads(self.params_json)
        return found

    @property
    def ended(self) -> bool:
        return self.state is not TrialState.RUNNING

    def at(self, started_at: datetime | None, ended_at: datetime | None) -> Self:
        """The trial with these times."""
        return replace(self, started_at=started_at, ended_at=ended_at)

    @property
    def feasible(self) -> bool:
        """Whether it succeeded and breaks no constraint."""
        return self.state is TrialState.SUCCEEDED and all(one <= 0 for one in self.violations)


def best_trials(trials: Iterable[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """The feasible trials that no other one exceeds, by number.

    With one objective it is one trial, of equal ones the first. With several, a trial exceeds another if it
    is better in one objective and at least as good in all others.
    """
    signs = [1.0 if one.direction is Direction.MINIMIZE else -1.0 for one in objectives]
    costs = [
        (tuple(sign * value for sign, value in zip(signs, trial.values, strict=True)), trial)
        for trial in trials
        if trial.feasible
    ]
    costs.sort(key=lambda one: (one[0], one[1].number))
    if len(signs) == 1:
        return [trial for _, trial in costs[:1]]
    # What exceeds a trial comes before it in this order, and something in the front exceeds it too.
    rows, front = np.empty((len(costs), len(signs))), list[Trial]()
    for cost, trial in costs:
        better = rows[: len(front)]
        if not ((better <= cost).all(axis=1) & (better < cost).any(axis=1)).any():
            rows[len(front)] = cost
            front.append(trial)
    return sorted(front, key=lambda trial: trial.number)


def schedule_of(trials: Sequence[Trial], number: int) -> list[Segment]:
    """The segments whose checkpoints follow each other up to the end of a trial, oldest first."""
    by_number = {trial.number: trial for trial in trials}
    found: list[Segment] = []
    for generation in range(len(by_number[number].segments) - 1, -1, -1):
        segment = by_number[number].segments[generation]
        found.append(segment)
        if segment.source_trial is None:
            break
        number = segment.source_trial
    return found[::-1]
