"""Tuning jobs: a search space, what is compared, and what trains each trial."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from flywheel.errors import SourceError
from flywheel.job_limits import limits_message
from flywheel.train_job import TrainJob
from flywheel_protos.trainer.v1 import trainer_pb2, tuning_pb2


@dataclass(frozen=True)
class FloatRange:
    """Numbers from `low` to `high`; with `log` the logarithm is uniform. A grid has `grid_points` of them."""

    low: float
    high: float
    log: bool = False
    grid_points: int = 0


@dataclass(frozen=True)
class IntRange:
    """Integers from `low` to `high` in steps; with `log` the logarithm is uniform."""

    low: int
    high: int
    log: bool = False
    step: int = 1


@dataclass(frozen=True)
class Choices:
    """One of the values: numbers, texts, booleans, None, lists and objects of them."""

    values: Sequence[Any]


@dataclass(frozen=True)
class Asha:
    """Early stopping: at min_steps, min_steps x reduction_factor, … steps a trial goes on only if it is among
    the best 1 / reduction_factor there."""

    min_steps: int
    reduction_factor: int = 3


@dataclass(frozen=True)
class PopulationBased:
    """Population-based training: after each generation of `interval_steps` steps, the worst members continue
    from checkpoints of the best ones with changed parameters."""

    population: int
    interval_steps: int
    generations: int
    quantile: float = 0.25
    resample_probability: float = 0.25


@dataclass(frozen=True)
class TuneJob:
    """A job that trains `job` in trials with different parameters.

    >>> fw.TuneJob(train, space={"learning_rate": fw.FloatRange(1e-4, 1e-1, log=True)}, minimize="loss",
    ...            max_trials=50, parallel_trials=4)
    """

    job: TrainJob | trainer_pb2.TrainSpec
    """Your code; or a TrainSpec, such as that of the tabular recipe."""
    space: Mapping[str, Any]
    """Domains by the name of the parameter: FloatRange, IntRange or Choices; another value is fixed."""
    minimize: str | Sequence[str] = ()
    """Metrics whose small values are better; the value at the last step of a trial counts."""
    maximize: str | Sequence[str] = ()
    """Metrics whose large values are better. With several objectives there are several best trials."""
    at_most: Mapping[str, float] = field(default_factory=dict)
    """Hard constraints: upper bounds of metrics."""
    at_least: Mapping[str, float] = field(default_factory=dict)
    """Hard constraints: lower bounds of metrics."""
    algorithm: Literal["tpe", "random", "grid"] | PopulationBased = "tpe"
    early_stopping: Asha | None = None
    max_trials: int = 0
    parallel_trials: int = 1
    """Trials at the same time; the job reserves the workers of all of them."""
    seed: int = 0
    max_failed_trials: int = 0
    """Failed trials after which the job fails; 0: 10."""
    timeout: timedelta | None = None
    """Longest time from the start of an attempt to its end; None: that of `job`."""
    stall_timeout: timedelta | None = None
    """Longest time without a new step of any metric; None: that of `job`."""
    max_attempts: int = 0
    """Attempts in total; another one follows a loss, never an error of the code; 0: as `job`, else 10."""


def tune_spec(job: TuneJob, base: trainer_pb2.TrainSpec) -> trainer_pb2.TuneSpec:
    """The specification of a job whose trials train `base`. Raises SourceError."""
    limited = trainer_pb2.TrainSpec()
    limited.CopyFrom(base)
    own = limits_message(job.timeout, job.stall_timeout, job.max_attempts)
    for given, _ in own.ListFields():
        limited.limits.ClearField(given.name)
    limited.limits.MergeFrom(own)
    return trainer_pb2.TuneSpec(base=limited, settings=settings_message(job))


def settings_message(job: TuneJob) -> tuning_pb2.TuneSettings:
    """The settings of a job as they are submitted. Raises SourceError for values that are no JSON."""
    message = tuning_pb2.TuneSettings(
        space=[_parameter(name, domain) for name, domain in job.space.items()],
        objectives=[
            *(_objective(metric, "MINIMIZE") for metric in _names(job.minimize)),
            *(_objective(metric, "MAXIMIZE") for metric in _names(job.maximize)),
        ],
        constraints=[
            *(tuning_pb2.MetricConstraint(metric=one, at_most=bound) for one, bound in job.at_most.items()),
            *(tuning_pb2.MetricConstraint(metric=one, at_least=bound) for one, bound in job.at_least.items()),
        ],
        max_trials=job.max_trials,
        parallel_trials=job.parallel_trials,
        seed=job.seed,
        max_failed_trials=job.max_failed_trials,
    )
    match job.algorithm:
        case "grid":
            message.grid.SetInParent()
        case "random":
            message.random.SetInParent()
        case "tpe":
            message.tpe.SetInParent()
        case PopulationBased() as population:
            message.population_based.CopyFrom(tuning_pb2.PopulationBasedTraining(**vars(population)))
        case other:
            raise SourceError(f"algorithm is {other!r}; use 'tpe', 'random', 'grid' or fw.PopulationBased.")
    if job.early_stopping is not None:
        message.early_stopping.CopyFrom(tuning_pb2.AshaStopping(**vars(job.early_stopping)))
    return message


def _parameter(name: str, domain: Any) -> tuning_pb2.SearchParameter:
    match domain:
        case FloatRange():
            return tuning_pb2.SearchParameter(name=name, float_range=tuning_pb2.FloatRange(**vars(domain)))
        case IntRange():
            return tuning_pb2.SearchParameter(name=name, int_range=tuning_pb2.IntRange(**vars(domain)))
        case Choices(values):
            texts = [_json(name, value) for value in values]
            return tuning_pb2.SearchParameter(name=name, choices=tuning_pb2.Choices(values_json=texts))
        case _:
            return tuning_pb2.SearchParameter(name=name, fixed_json=_json(name, domain))


def _json(name: str, value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SourceError(f"The parameter {name!r} has the value {value!r}: {error}.") from error


def _objective(metric: str, direction: str) -> tuning_pb2.Objective:
    return tuning_pb2.Objective(metric=metric, direction=f"DIRECTION_{direction}")


def _names(metrics: str | Sequence[str]) -> list[str]:
    return [metrics] if isinstance(metrics, str) else list(metrics)
