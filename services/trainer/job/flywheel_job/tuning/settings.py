"""How the trials of a TUNE job are chosen: search space, objectives, constraints and algorithm.

Values are given as JSON where they may be of any type, and compared and stored in that form.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

DEFAULT_PARALLEL, DEFAULT_FAILED, DEFAULT_STARTUP = 1, 10, 10
DEFAULT_REDUCTION, DEFAULT_QUANTILE, DEFAULT_RESAMPLE = 3, 0.25, 0.25


@dataclass(frozen=True)
class FloatRange:
    """Numbers from `low` to `high`, uniform or uniform in the logarithm."""

    low: float
    high: float
    log: bool = False
    grid_points: int = 0

    def grid_size(self) -> int:
        return self.grid_points

    def grid_values(self) -> list[Any]:
        if self.grid_points == 1:
            return [self.low]
        share = [number / (self.grid_points - 1) for number in range(self.grid_points)]
        if not self.log:
            return [self.low + (self.high - self.low) * part for part in share[:-1]] + [self.high]
        ratio = math.log(self.high / self.low)
        return [self.low, *(self.low * math.exp(ratio * part) for part in share[1:-1]), self.high]


@dataclass(frozen=True)
class IntRange:
    """Integers from `low` to `high` in steps, uniform or uniform in the logarithm."""

    low: int
    high: int
    log: bool = False
    step: int = 1

    def grid_size(self) -> int:
        return (self.high - self.low) // self.step + 1

    def grid_values(self) -> list[Any]:
        return list(range(self.low, self.high + 1, self.step))


@dataclass(frozen=True)
class Choices:
    """One of several JSON values."""

    values_json: tuple[str, ...]

    def grid_size(self) -> int:
        return len(self.values_json)

    def grid_values(self) -> list[Any]:
        return [json.loads(value) for value in self.values_json]


@dataclass(frozen=True)
class Fixed:
    """A JSON value that all trials have."""

    value_json: str

    def grid_size(self) -> int:
        return 1

    def grid_values(self) -> list[Any]:
        return [json.loads(self.value_json)]


Domain = FloatRange | IntRange | Choices | Fixed


class Direction(StrEnum):
    MINIMIZE = "MINIMIZE"
    MAXIMIZE = "MAXIMIZE"


@dataclass(frozen=True)
class Objective:
    """A metric by which trials are compared."""

    metric: str
    direction: Direction


@dataclass(frozen=True)
class Constraint:
    """A bound of a metric; exactly one of the two is set."""

    metric: str
    at_most: float | None = None
    at_least: float | None = None

    def violation(self, value: float) -> float:
        """The distance beyond the bound: above 0 if the constraint is broken."""
        return value - self.at_most if self.at_most is not None else (self.at_least or 0.0) - value


@dataclass(frozen=True)
class Grid:
    """Every combination, the last parameter varying fastest."""


@dataclass(frozen=True)
class RandomSearch:
    """Independent values."""


@dataclass(frozen=True)
class Tpe:
    """Tree-structured Parzen estimator."""

    startup_trials: int = DEFAULT_STARTUP


@dataclass(frozen=True)
class Population:
    """Population-based training."""

    size: int
    interval_steps: int
    generations: int
    quantile: float = DEFAULT_QUANTILE
    resample_probability: float = DEFAULT_RESAMPLE


Algorithm = Grid | RandomSearch | Tpe | Population


@dataclass(frozen=True)
class Asha:
    """Asynchronous successive halving."""

    min_steps: int
    reduction_factor: int = DEFAULT_REDUCTION


@dataclass(frozen=True)
class TuneSettings:
    """Everything that chooses trials (TuneSettings in the API, with its defaults filled in)."""

    space: Mapping[str, Domain]
    objectives: tuple[Objective, ...]
    algorithm: Algorithm
    max_trials: int = 0
    constraints: tuple[Constraint, ...] = ()
    early_stopping: Asha | None = None
    parallel_trials: int = DEFAULT_PARALLEL
    seed: int = 0
    max_failed_trials: int = DEFAULT_FAILED
    problems: tuple[str, ...] = field(default=(), compare=False)
    """What the message had that this form cannot express, such as a parameter twice."""

    @property
    def metrics(self) -> list[str]:
        """The metrics that every trial must log."""
        names = [one.metric for one in self.objectives] + [one.metric for one in self.constraints]
        return list(dict.fromkeys(names))

    @property
    def trial_count(self) -> int:
        """The number of trials of a search that ends by itself."""
        if isinstance(self.algorithm, Population):
            return self.algorithm.size
        if isinstance(self.algorithm, Grid):
            size = math.prod(domain.grid_size() for domain in self.space.values())
            return min(size, self.max_trials) if self.max_trials else size
        return self.max_trials

    @property
    def at_once(self) -> int:
        """The largest number of trials that run at the same time."""
        return min(self.parallel_trials, self.trial_count)

    def grid_point(self, number: int) -> dict[str, Any]:
        """Combination `number` of the grid, the last parameter varying fastest."""
        found: dict[str, Any] = {}
        for name, domain in reversed(list(self.space.items())):
            number, index = divmod(number, domain.grid_size())
            found[name] = next(itertools.islice(domain.grid_values(), index, None))
        return dict(reversed(found.items()))
