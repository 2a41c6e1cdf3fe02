"""The specification of a TUNE job, and its validation."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from flywheel_job.errors import InvalidParams
from flywheel_job.params import parse_params
from flywheel_job.recipes.tabular.spec import CHANGEABLE, Hyperparameters
from flywheel_job.tuning.settings import (
    Choices,
    Domain,
    Fixed,
    FloatRange,
    Grid,
    IntRange,
    Population,
    TuneSettings,
)
from flywheel_trainer.jobs.errors import InvalidSpec
from flywheel_trainer.jobs.train_spec import TrainSpec, check_spec

MAX_TRIALS, MAX_PARALLEL, MAX_PARAMETERS, MAX_CHOICES = 10_000, 256, 100, 1000
MAX_OBJECTIVES, MAX_CONSTRAINTS, MAX_MEMBERS = 8, 16, 1000
EXACT = 1 << 53
"""Integers up to here are exact in the calculations of a search."""
_NAME = re.compile(r"[A-Za-z_]\w{0,199}")
Problem = tuple[str, str]
"""The field below tune.settings, and the rule that it breaks."""


@dataclass(frozen=True)
class TuneSpec:
    """What a TUNE job trains, and how its trials are chosen."""

    KIND: ClassVar[str] = "TUNE"

    base: TrainSpec
    settings: TuneSettings

    @property
    def experiment(self) -> str:
        return self.base.experiment

    @property
    def training_set(self) -> str:
        return self.base.training_set

    @property
    def trained(self) -> TrainSpec:
        """What a trial trains before its parameters are added.

        A member of a population trains as many epochs of the tabular recipe as its generations have.
        """
        algorithm = self.settings.algorithm
        if self.base.code is not None or not isinstance(algorithm, Population):
            return self.base
        epochs = algorithm.interval_steps * algorithm.generations
        return replace(self.base, hyperparameters=replace(self.base.hyperparameters, epochs=epochs))


def check_tune_spec(spec: TuneSpec) -> None:
    """Raises InvalidSpec naming the field."""
    if spec.base.code is not None and spec.base.code.schedule:
        raise InvalidSpec(
            "tune.base.code.schedule must be empty: trials have one each.", field="tune.base.code.schedule"
        )
    for field, rule in _problems(spec.settings):
        raise InvalidSpec(f"tune.settings.{field} {rule}.", field=f"tune.settings.{field}")
    if spec.base.code is None:
        _check_tabular(spec)


def _problems(settings: TuneSettings) -> Iterator[Problem]:
    for problem in settings.problems:
        field, _, rule = problem.partition(" ")
        yield field, rule
    yield from _space_problems(settings)
    yield from _objective_problems(settings)
    algorithm = settings.algorithm
    if isinstance(algorithm, Population):
        yield from _population_problems(settings, algorithm)
    elif not (isinstance(algorithm, Grid) or settings.max_trials) or settings.max_trials > MAX_TRIALS:
        yield "max_trials", f"must be between 1 and {MAX_TRIALS}"
    if isinstance(algorithm, Grid):
        if any(isinstance(one, FloatRange) and one.grid_points < 1 for one in settings.space.values()):
            yield "space", "needs grid_points in each float_range for a grid"
        if settings.trial_count > MAX_TRIALS:
            yield "space", f"has {settings.trial_count} combinations; at most {MAX_TRIALS} can be tried"
    if not 1 <= settings.parallel_trials <= MAX_PARALLEL:
        yield "parallel_trials", f"must be between 1 and {MAX_PARALLEL}"
    if not 0 <= settings.seed < 1 << 32:
        yield "seed", "must be below 2^32"
    stopping = settings.early_stopping
    if stopping is not None:
        if len(settings.objectives) != 1 or isinstance(algorithm, Population):
            yield "early_stopping", "needs exactly one objective, and another algorithm than population_based"
        if stopping.min_steps < 1:
            yield "early_stopping.min_steps", "must be at least 1"
        if not 2 <= stopping.reduction_factor <= 100:
            yield "early_stopping.reduction_factor", "must be between 2 and 100"


def _space_problems(settings: TuneSettings) -> Iterator[Problem]:
    if not 1 <= len(settings.space) <= MAX_PARAMETERS:
        yield "space", f"must have between 1 and {MAX_PARAMETERS} parameters"
    for name, domain in settings.space.items():
        if _NAME.fullmatch(name) is None:
            yield "space", f"has the name {name[:80]!r}: names are letters, digits and _, at most 200"
        rule = _domain_problem(domain)
        if rule:
            yield f"space.{name}", rule
    if all(isinstance(domain, Fixed) for domain in settings.space.values()):
        yield "space", "needs a parameter that is not fixed"


def _domain_problem(domain: Domain) -> str:
    match domain:
        case FloatRange(low, high, log):
            if not (math.isfinite(low) and math.isfinite(high)):
                return "must have finite bounds"
            if low > high:
                return f"is inverted: low is {low:g} and high is {high:g}"
            if log and low <= 0:
                return "must have a low above 0 with log"
            return "must have at most 10000 grid_points" if domain.grid_points > MAX_TRIALS else ""
        case IntRange(low, high, log, step):
            if low > high:
                return f"is inverted: low is {low} and high is {high}"
            if max(abs(low), abs(high)) > EXACT:
                return "must have bounds of at most 2^53"
            if step < 1 or (log and step != 1):
                return "must have a step of at least 1, and of 1 with log"
            return "must have a low above 0 with log" if log and low <= 0 else ""
        case Choices(values):
            if not 1 <= len(values) <= MAX_CHOICES:
                return f"must have between 1 and {MAX_CHOICES} choices"
            texts = [_normal(value) for value in values]
            if None in texts:
                return "must have JSON values without NUL as choices"
            return "" if len(set(texts)) == len(texts) else "has a choice twice"
        case Fixed(value):
            return "must be a JSON value without NUL" if _normal(value) is None else ""


def _objective_problems(settings: TuneSettings) -> Iterator[Problem]:
    metrics = [one.metric for one in settings.objectives]
    if not 1 <= len(metrics) <= MAX_OBJECTIVES:
        yield "objectives", f"must have between 1 and {MAX_OBJECTIVES} entries"
    if len(set(metrics)) < len(metrics):
        yield "objectives", "names a metric twice"
    if len(settings.constraints) > MAX_CONSTRAINTS:
        yield "constraints", f"must have at most {MAX_CONSTRAINTS} entries"
    for field, names in (("objectives", metrics), ("constraints", [c.metric for c in settings.constraints])):
        if not all(0 < len(name) <= 200 for name in names):
            yield field, "must name metrics of 1 to 200 characters"
    for one in settings.constraints:
        if not math.isfinite(one.at_most if one.at_most is not None else one.at_least or 0.0):
            yield "constraints", f"has a bound of {one.metric!r} that is not finite"


def _population_problems(settings: TuneSettings, population: Population) -> Iterator[Problem]:
    field = "population_based"
    if settings.max_trials:
        yield "max_trials", "must be unset with population_based: each member is a trial"
    if len(settings.objectives) != 1:
        yield "objectives", "must have exactly 1 entry with population_based"
    if not 2 <= population.size <= MAX_MEMBERS:
        yield f"{field}.population", f"must be between 2 and {MAX_MEMBERS}"
    if population.interval_steps < 1:
        yield f"{field}.interval_steps", "must be at least 1"
    if not 1 <= population.generations <= MAX_MEMBERS:
        yield f"{field}.generations", f"must be between 1 and {MAX_MEMBERS}"
    if not 0 < population.quantile <= 0.5:
        yield f"{field}.quantile", "must be above 0 and at most 0.5"
    if not 0 <= population.resample_probability <= 1:
        yield f"{field}.resample_probability", "must be between 0 and 1"


def _check_tabular(spec: TuneSpec) -> None:
    """Raises InvalidSpec if a value of the space is none that the tabular recipe accepts.

    The limits of the recipe are ranges, so that the ends of each domain suffice.
    """
    if spec.base.schedule:
        raise InvalidSpec(
            "tune.base.tabular.schedule must be empty: trials have one each.",
            field="tune.base.tabular.schedule",
        )
    if isinstance(spec.settings.algorithm, Population):
        _check_changes(spec)
    for name, domain in spec.settings.space.items():
        for value in _ends(domain):
            try:
                given = parse_params(Hyperparameters, {name: value})
            except InvalidParams as error:
                raise InvalidSpec(
                    f"tune.settings.space.{name} is not for the tabular recipe: {error.message}",
                    field=f"tune.settings.space.{name}",
                ) from error
            check_spec(TrainSpec(spec.experiment, spec.training_set, given))


def _check_changes(spec: TuneSpec) -> None:
    """Raises InvalidSpec if a generation would change what the tabular recipe cannot change."""
    for name, domain in spec.settings.space.items():
        if name == "epochs" or not (isinstance(domain, Fixed) or name in CHANGEABLE):
            raise InvalidSpec(
                f"tune.settings.space.{name} cannot be tuned with population_based: the tabular recipe can "
                f"change {', '.join(CHANGEABLE)}, and each generation trains interval_steps epochs.",
                field=f"tune.settings.space.{name}",
            )
    check_spec(replace(spec.trained, training_set=spec.training_set or "later"))


def _ends(domain: Domain) -> list[Any]:
    if isinstance(domain, FloatRange | IntRange):
        return [domain.low, domain.high]
    return domain.grid_values()


def _normal(text: str) -> str | None:
    """One form of equal JSON values; None if the text is no JSON, or has a NUL, which tables cannot store."""
    try:
        normal = json.dumps(json.loads(text, parse_constant=_refuse), sort_keys=True)
    except (ValueError, RecursionError):
        return None
    return None if "\\u0000" in normal else normal


def _refuse(name: str) -> None:
    raise ValueError(name)
