"""Settings and trials as protobuf messages: in the API, and as JSON of the message in files and tables."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_job.tuning import settings as own
from flywheel_job.tuning.trial import Segment, Trial, TrialState
from flywheel_protos.trainer.v1 import tuning_pb2 as pb


def settings_from_proto(message: pb.TuneSettings) -> own.TuneSettings:
    """Zero values become defaults. What cannot be expressed is in `problems`."""
    names = [one.name for one in message.space]
    problems = [f"space names {name!r} twice" for name in sorted(set(names)) if names.count(name) > 1]
    problems += [f"space names {one.name!r} without a domain" for one in message.space if _no_domain(one)]
    problems += [
        f"objectives names {one.metric!r} without a direction"
        for one in message.objectives
        if one.direction not in (pb.DIRECTION_MINIMIZE, pb.DIRECTION_MAXIMIZE)
    ]
    problems += [
        f"constraints names {one.metric!r} without a bound"
        for one in message.constraints
        if one.WhichOneof("bound") is None
    ]
    if message.WhichOneof("algorithm") is None:
        problems.append("algorithm is not set")
    return own.TuneSettings(
        space={one.name: _domain(one) for one in message.space if not _no_domain(one)},
        objectives=tuple(
            own.Objective(
                one.metric,
                own.Direction.MAXIMIZE if one.direction == pb.DIRECTION_MAXIMIZE else own.Direction.MINIMIZE,
            )
            for one in message.objectives
        ),
        constraints=tuple(
            own.Constraint(
                one.metric,
                one.at_most if one.WhichOneof("bound") == "at_most" else None,
                one.at_least if one.WhichOneof("bound") == "at_least" else None,
            )
            for one in message.constraints
        ),
        algorithm=_algorithm(message),
        early_stopping=own.Asha(
            message.early_stopping.min_steps,
            message.early_stopping.reduction_factor or own.DEFAULT_REDUCTION,
        )
        if message.HasField("early_stopping")
        else None,
        max_trials=message.max_trials,
        parallel_trials=message.parallel_trials or own.DEFAULT_PARALLEL,
        seed=message.seed,
        max_failed_trials=message.max_failed_trials or own.DEFAULT_FAILED,
        problems=tuple(problems),
    )


def settings_to_proto(settings: own.TuneSettings) -> pb.TuneSettings:
    message = pb.TuneSettings(
        space=[_parameter(name, domain) for name, domain in settings.space.items()],
        objectives=[
            pb.Objective(metric=one.metric, direction=f"DIRECTION_{one.direction}")
            for one in settings.objectives
        ],
        constraints=[
            pb.MetricConstraint(metric=one.metric, at_most=one.at_most, at_least=one.at_least)
            for one in settings.constraints
        ],
        early_stopping=pb.AshaStopping(
            min_steps=settings.early_stopping.min_steps,
            reduction_factor=settings.early_stopping.reduction_factor,
        )
        if settings.early_stopping
        else None,
        max_trials=settings.max_trials,
        parallel_trials=settings.parallel_trials,
        seed=settings.seed,
        max_failed_trials=settings.max_failed_trials,
    )
    match settings.algorithm:
        case own.Grid():
            message.grid.SetInParent()
        case own.RandomSearch():
            message.random.SetInParent()
        case own.Tpe(startup):
            message.tpe.startup_trials = startup
        case own.Population() as population:
            message.population_based.CopyFrom(
                pb.PopulationBasedTraining(
                    population=population.size,
                    interval_steps=population.interval_steps,
                    generations=population.generations,
                    quantile=population.quantile,
                    resample_probability=population.resample_probability,
                )
            )
    return message


def settings_to_json(settings: own.TuneSettings) -> dict[str, Any]:
    return MessageToDict(settings_to_proto(settings), preserving_proto_field_name=True)


def settings_from_json(stored: dict[str, Any]) -> own.TuneSettings:
    return settings_from_proto(ParseDict(stored, pb.TuneSettings(), ignore_unknown_fields=True))


def trial_from_proto(message: pb.Trial, state: TrialState | None = None) -> Trial:
    """Without the times; `state` replaces that of the message. Raises ValueError for an unknown state."""
    return Trial(
        number=message.number,
        params_json=message.params_json or "{}",
        state=state or TrialState(pb.TrialState.Name(message.state).removeprefix("TRIAL_STATE_")),
        values=tuple(message.values),
        violations=tuple(message.violations),
        last_step=message.last_step,
        last_value=message.last_value if message.HasField("last_value") else None,
        rungs=dict(message.rungs),
        segments=tuple(
            Segment(
                one.generation,
                one.source_trial if one.HasField("source_trial") else None,
                one.params_json or "{}",
                one.until_step,
                one.value,
            )
            for one in message.segments
        ),
        error_reason=message.error_reason,
        error_message=message.error_message,
    )


def trial_to_proto(trial: Trial, job: str = "", run: str = "") -> pb.Trial:
    """`job` and `run` are resource names."""
    return pb.Trial(
        name=f"{job}/trials/{trial.number}" if job else "",
        number=trial.number,
        state=f"TRIAL_STATE_{trial.state}",
        run=run,
        params_json=trial.params_json,
        values=trial.values,
        violations=trial.violations,
        last_step=trial.last_step,
        last_value=trial.last_value,
        rungs=trial.rungs,
        segments=[
            pb.TrialSegment(
                generation=one.generation,
                source_trial=one.source_trial,
                params_json=one.params_json,
                until_step=one.until_step,
                value=one.value,
            )
            for one in trial.segments
        ],
        error_reason=trial.error_reason,
        error_message=trial.error_message,
        started_at=_timestamp(trial.started_at),
        ended_at=_timestamp(trial.ended_at),
    )


def _no_domain(parameter: pb.SearchParameter) -> bool:
    return parameter.WhichOneof("domain") is None


def _domain(parameter: pb.SearchParameter) -> own.Domain:
    match parameter.WhichOneof("domain"):
        case "float_range":
            one = parameter.float_range
            return own.FloatRange(one.low, one.high, one.log, one.grid_points)
        case "int_range":
            whole = parameter.int_range
            return own.IntRange(whole.low, whole.high, whole.log, whole.step or 1)
        case "choices":
            return own.Choices(tuple(parameter.choices.values_json))
        case _:
            return own.Fixed(parameter.fixed_json)


def _parameter(name: str, domain: own.Domain) -> pb.SearchParameter:
    match domain:
        case own.FloatRange(low, high, log, points):
            made = pb.FloatRange(low=low, high=high, log=log, grid_points=points)
            return pb.SearchParameter(name=name, float_range=made)
        case own.IntRange(first, last, log, step):
            return pb.SearchParameter(
                name=name, int_range=pb.IntRange(low=first, high=last, log=log, step=step)
            )
        case own.Choices(values):
            return pb.SearchParameter(name=name, choices=pb.Choices(values_json=values))
        case own.Fixed(value):
            return pb.SearchParameter(name=name, fixed_json=value)


def _algorithm(message: pb.TuneSettings) -> own.Algorithm:
    match message.WhichOneof("algorithm"):
        case "grid":
            return own.Grid()
        case "tpe":
            return own.Tpe(message.tpe.startup_trials or own.DEFAULT_STARTUP)
        case "population_based":
            one = message.population_based
            drawn = one.HasField("resample_probability")
            return own.Population(
                one.population,
                one.interval_steps,
                one.generations,
                one.quantile or own.DEFAULT_QUANTILE,
                one.resample_probability if drawn else own.DEFAULT_RESAMPLE,
            )
        case _:
            return own.RandomSearch()


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    made = Timestamp()
    made.FromDatetime(time.astimezone(UTC).replace(tzinfo=None))
    return made
