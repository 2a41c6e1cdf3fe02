"""Job specifications as protobuf messages: in the API, and as JSON of the message in the database.

What is stored is the message, so that a field that is added later is absent from old rows and has its
default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from flywheel_job.recipes.tabular.spec import Hyperparameters
from flywheel_job.tuning.messages import settings_from_proto, settings_to_proto
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_trainer.encoding.model_specs import (
    evaluate_spec_from_proto,
    evaluate_spec_to_proto,
    export_spec_from_proto,
    export_spec_to_proto,
)
from flywheel_trainer.encoding.score_specs import score_spec_from_proto, score_spec_to_proto
from flywheel_trainer.encoding.spec_fields import duration, experiment_id, seconds_of
from flywheel_trainer.jobs.code import CodeRecipe, ScheduleSegment
from flywheel_trainer.jobs.errors import InvalidSpec
from flywheel_trainer.jobs.evaluate_spec import EvaluateSpec
from flywheel_trainer.jobs.export_spec import ExportSpec
from flywheel_trainer.jobs.kinds import Spec
from flywheel_trainer.jobs.limits import MAX_ATTEMPTS, Limits
from flywheel_trainer.jobs.score_spec import ScoreSpec
from flywheel_trainer.jobs.train_spec import TrainSpec
from flywheel_trainer.jobs.tune_spec import TuneSpec
from flywheel_trainer.runs.run import ExperimentName

_DEFAULTS = Hyperparameters()
_LIMITS = Limits()


def spec_of(job: pb.Job) -> Spec:
    """The specification in a job's oneof. Raises InvalidSpec if there is none, and InvalidName."""
    match job.WhichOneof("spec"):
        case "train":
            return train_spec_from_proto(job.train)
        case "tune":
            base = train_spec_from_proto(job.tune.base)
            if not job.tune.base.limits.max_attempts:
                base = replace(base, limits=replace(base.limits, max_attempts=MAX_ATTEMPTS))
            return TuneSpec(base, settings_from_proto(job.tune.settings))
        case "evaluate":
            return evaluate_spec_from_proto(job.evaluate)
        case "export":
            return export_spec_from_proto(job.export)
        case "score":
            return score_spec_from_proto(job.score, experiment_id(job.score.experiment))
        case _:
            raise InvalidSpec(
                "The job has no specification: set one field of `spec`, such as `train`.", field="job.train"
            )


def job_with_spec(spec: Spec, project: str) -> pb.Job:
    """A message with only the oneof set."""
    if isinstance(spec, TuneSpec):
        base, settings = train_spec_to_proto(spec.base, project), settings_to_proto(spec.settings)
        return pb.Job(tune=pb.TuneSpec(base=base, settings=settings))
    if isinstance(spec, EvaluateSpec):
        return pb.Job(evaluate=evaluate_spec_to_proto(spec, project))
    if isinstance(spec, ExportSpec):
        return pb.Job(export=export_spec_to_proto(spec, project))
    if isinstance(spec, ScoreSpec):
        return pb.Job(score=score_spec_to_proto(spec, project))
    return pb.Job(train=train_spec_to_proto(spec, project))


def spec_to_json(spec: Spec, project: str) -> dict[str, Any]:
    """The JSON form of the message, for storage."""
    return MessageToDict(job_with_spec(spec, project), preserving_proto_field_name=True)


def spec_from_json(stored: dict[str, Any]) -> Spec:
    """The inverse of `spec_to_json`; fields of a newer version are ignored."""
    return spec_of(ParseDict(stored, pb.Job(), ignore_unknown_fields=True))


LATER = "projects/later/later/later"
"""Stands for a text that only a run of a pipeline knows."""


def spec_from_step(given: Mapping[str, Any], later: Sequence[str]) -> Spec:
    """The specification in the JSON form of a Job, as a step of a pipeline has it.

    Texts at the paths in `later` get a placeholder, and other values there their default. Raises
    InvalidSpec if there is a field that does not exist or a value of another type.
    """
    try:
        job = ParseDict(dict(given), pb.Job())
    except ParseError as error:
        raise InvalidSpec(f"The specification of a job is wrong: {error}", field="job") from error
    for path in later:
        _set_placeholder(job, path)
    return spec_of(job)


def _set_placeholder(job: pb.Job, path: str) -> None:
    """Raises InvalidSpec if there is no such field."""
    at: Any = job
    *outer, last = path.split(".")
    for position, name in enumerate(outer):
        field = at.DESCRIPTOR.fields_by_name.get(name)
        if field is not None and field.type == field.TYPE_STRING and name == "params_json":
            return
        if field is None or field.message_type is None:
            raise InvalidSpec(f"A job has no field {path!r}.", field=path)
        if field.message_type.GetOptions().map_entry:
            getattr(at, name)[".".join((*outer[position + 1 :], last))] = LATER
            return
        at = getattr(at, name)
    found = at.DESCRIPTOR.fields_by_name.get(last)
    if found is None:
        raise InvalidSpec(f"A job has no field {path!r}.", field=path)
    at.SetInParent()
    if found.type == found.TYPE_STRING and not found.is_repeated:
        setattr(at, last, LATER)


def train_spec_from_proto(spec: pb.TrainSpec) -> TrainSpec:
    """Zero values become defaults. Raises InvalidName, and InvalidSpec for a wrong fraction of a GPU."""
    recipe = spec.tabular
    hyper = Hyperparameters(
        hidden_sizes=tuple(recipe.hidden_sizes) or _DEFAULTS.hidden_sizes,
        epochs=recipe.epochs or _DEFAULTS.epochs,
        batch_size=recipe.batch_size or _DEFAULTS.batch_size,
        learning_rate=recipe.learning_rate or _DEFAULTS.learning_rate,
        weight_decay=recipe.weight_decay,
        dropout=recipe.dropout,
        seed=recipe.seed,
        holdout_fraction=recipe.holdout_fraction or _DEFAULTS.holdout_fraction,
        weight_column=recipe.weight_column,
        task=recipe.task or _DEFAULTS.task,  # type: ignore[arg-type]  # check_spec refuses other texts
        teacher_weight=recipe.teacher_weight or _DEFAULTS.teacher_weight,
        teacher_temperature=recipe.teacher_temperature or _DEFAULTS.teacher_temperature,
    )
    return TrainSpec(
        experiment=experiment_id(spec.experiment),
        training_set=spec.training_set,
        hyperparameters=hyper,
        warm_start=recipe.warm_start,
        teacher=recipe.teacher,
        workers=spec.workers or 1,
        gpus_per_worker=_gpus_from_proto(spec),
        cpus_per_worker=spec.cpus_per_worker,
        limits=_limits_from_proto(spec.limits),
        code=_code_from_proto(spec.code) if spec.HasField("code") else None,
        schedule=_schedule_from_proto(recipe.schedule),
    )


def train_spec_to_proto(spec: TrainSpec, project: str) -> pb.TrainSpec:
    return pb.TrainSpec(
        experiment=str(ExperimentName(project, spec.experiment)),
        training_set=spec.training_set,
        tabular=None
        if spec.code
        else pb.TabularRecipe(
            **asdict(spec.hyperparameters),
            warm_start=spec.warm_start,
            teacher=spec.teacher,
            schedule=[asdict(one) for one in spec.schedule],
        ),
        code=pb.CodeRecipe(**asdict(spec.code)) if spec.code else None,
        workers=spec.workers,
        gpus_per_worker=int(spec.gpus_per_worker),
        gpu_fraction=spec.gpus_per_worker % 1,
        cpus_per_worker=spec.cpus_per_worker,
        limits=pb.JobLimits(
            timeout=duration(spec.limits.timeout_seconds),
            stall_timeout=duration(spec.limits.stall_seconds),
            max_attempts=spec.limits.max_attempts,
        ),
    )


def _gpus_from_proto(spec: pb.TrainSpec) -> float:
    fraction = spec.gpu_fraction
    if not 0 <= fraction < 1 or (fraction and spec.gpus_per_worker):
        raise InvalidSpec(
            f"train.gpu_fraction is {fraction:g} with gpus_per_worker {spec.gpus_per_worker}: it must be at "
            "least 0 and below 1, and 0 with gpus_per_worker.",
            field="train.gpu_fraction",
        )
    return fraction or spec.gpus_per_worker


def _code_from_proto(code: pb.CodeRecipe) -> CodeRecipe:
    return CodeRecipe(
        function=code.function,
        source_sha256=code.source_sha256,
        params_json=code.params_json or "{}",
        training_sets=dict(code.training_sets),
        check=code.check,
        export=code.export,
        seed=code.seed,
        provenance=dict(code.provenance),
        environment=dict(code.environment),
        memory_bytes_per_worker=code.memory_bytes_per_worker,
        accelerator_type=code.accelerator_type,
        requirements=code.requirements,
        schedule=_schedule_from_proto(code.schedule),
    )


def _schedule_from_proto(schedule: Iterable[pb.ScheduleSegment]) -> tuple[ScheduleSegment, ...]:
    return tuple(ScheduleSegment(one.until_step, one.params_json or "{}") for one in schedule)


def _limits_from_proto(limits: pb.JobLimits) -> Limits:
    return Limits(
        seconds_of(limits, "timeout", _LIMITS.timeout_seconds),
        seconds_of(limits, "stall_timeout", _LIMITS.stall_seconds),
        limits.max_attempts or _LIMITS.max_attempts,
    )
