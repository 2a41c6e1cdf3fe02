"""The specification of a TRAIN job, and its validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Self, get_args

from flywheel_job.errors import InvalidParams
from flywheel_job.launch import Column
from flywheel_job.params import parse_params
from flywheel_job.recipes.tabular.spec import CHANGEABLE, Hyperparameters
from flywheel_job.recipes.tasks import Task
from flywheel_trainer.jobs.code import CodeRecipe, ScheduleSegment, check_code, check_schedule
from flywheel_trainer.jobs.errors import InvalidSpec
from flywheel_trainer.jobs.limits import Limits, check_limits
from flywheel_trainer.jobs.model_spec import VERSION

MAX_WORKERS = 1024
TASKS = get_args(Task)
WEIGHT_TYPES = ("BOOL", "INT64", "FLOAT32", "FLOAT64")


@dataclass(frozen=True)
class TrainSpec:
    """What a TRAIN job trains, on which data, with how many workers."""

    KIND: ClassVar[str] = "TRAIN"

    experiment: str
    training_set: str
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    warm_start: str = ""
    """Model version whose weights training starts from; empty: random weights."""
    teacher: str = ""
    """Model version whose answers the network learns besides the labels; empty: none."""
    workers: int = 1
    gpus_per_worker: float = 0.0
    """A whole number, or a fraction of one GPU."""
    cpus_per_worker: float = 0.0
    """0: the trainer's setting."""
    limits: Limits = field(default_factory=Limits)
    code: CodeRecipe | None = None
    """The training code; None: the tabular recipe."""
    schedule: tuple[ScheduleSegment, ...] = ()
    """Hyperparameters of the tabular recipe that change after an epoch; training code has its own."""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `asdict` followed by a round trip through JSON."""
        hyperparameters = Hyperparameters.from_json(fields["hyperparameters"])
        limits = Limits.from_json(fields.get("limits", {}))
        code = CodeRecipe.from_json(fields.get("code"))
        schedule = tuple(ScheduleSegment(**one) for one in fields.get("schedule", ()))
        given = {"hyperparameters": hyperparameters, "limits": limits, "code": code, "schedule": schedule}
        return cls(**{**fields, **given})


def check_spec(spec: TrainSpec) -> None:
    """Raises InvalidSpec naming the field."""
    hyper = spec.hyperparameters
    sizes_fit = all(1 <= size <= 65_536 for size in hyper.hidden_sizes)
    problems = [
        (not spec.experiment, "experiment", "must name the experiment of the run"),
        (spec.code is None and not spec.training_set, "training_set", "must name a training set"),
        (spec.code is not None and bool(spec.training_set), "training_set", "must be empty with `code`"),
        (not 1 <= spec.workers <= MAX_WORKERS, "workers", f"must be between 1 and {MAX_WORKERS}"),
        (not 0 <= spec.cpus_per_worker <= 1024, "cpus_per_worker", "must be between 0 and 1024"),
        (not sizes_fit, "tabular.hidden_sizes", "must be between 1 and 65536"),
        (len(hyper.hidden_sizes) > 32, "tabular.hidden_sizes", "must have at most 32 layers"),
        (not 1 <= hyper.epochs <= 100_000, "tabular.epochs", "must be between 1 and 100000"),
        (hyper.batch_size < 1, "tabular.batch_size", "must be at least 1"),
        (not 0 < hyper.learning_rate < 1e3, "tabular.learning_rate", "must be above 0 and below 1000"),
        (not 0 <= hyper.weight_decay < 1e3, "tabular.weight_decay", "must be at least 0 and below 1000"),
        (not 0 <= hyper.dropout < 1, "tabular.dropout", "must be at least 0 and below 1"),
        (not 0 < hyper.holdout_fraction < 1, "tabular.holdout_fraction", "must be between 0 and 1"),
        (hyper.seed >= 1 << 32, "tabular.seed", "must be below 2^32"),
        (hyper.task not in TASKS, "tabular.task", f"is {hyper.task!r}, it must be one of {', '.join(TASKS)}"),
        (not 0 < hyper.teacher_weight <= 1, "tabular.teacher_weight", "must be above 0 and at most 1"),
        (
            not 0 < hyper.teacher_temperature <= 100,
            "tabular.teacher_temperature",
            "must be above 0 and at most 100",
        ),
        (
            bool(spec.teacher) and VERSION.fullmatch(spec.teacher) is None,
            "tabular.teacher",
            "must name a model version (projects/{project}/models/{model}/versions/{version})",
        ),
    ]
    for wrong, name, rule in problems:
        if wrong:
            raise InvalidSpec(f"train.{name} {rule}.", field=f"train.{name}")
    check_limits(spec.limits, "train.limits")
    if spec.code is not None:
        check_code(spec.code)
    if spec.schedule:
        _check_schedule(spec)
    if spec.warm_start and "/versions/" not in spec.warm_start:
        raise InvalidSpec(
            "train.tabular.warm_start must name a model version "
            "(projects/{project}/models/{model}/versions/{version})."
        )


def _check_schedule(spec: TrainSpec) -> None:
    field, hyper = "train.tabular.schedule", asdict(spec.hyperparameters)
    check_schedule(spec.schedule, field)
    if spec.hyperparameters.epochs != spec.schedule[-1].until_step:
        raise InvalidSpec(
            "train.tabular.epochs must be the last until_step of the schedule.", field="train.tabular.epochs"
        )
    for segment in spec.schedule:
        try:
            given = parse_params(Hyperparameters, hyper | segment.params)
        except InvalidParams as error:
            raise InvalidSpec(f"{field}: {error.message}", field=field) from error
        changed = [name for name, value in asdict(given).items() if value != hyper[name]]
        if not set(changed) <= set(CHANGEABLE):
            raise InvalidSpec(
                f"{field} changes {', '.join(changed)}; it may change {', '.join(CHANGEABLE)}.", field=field
            )
        check_spec(replace(spec, hyperparameters=given, schedule=()))


def check_weight_column(spec: TrainSpec, extra_columns: Sequence[Column]) -> None:
    """Raises InvalidSpec unless the weight column is an extra column with numbers, or there is none."""
    name, field = spec.hyperparameters.weight_column, "train.tabular.weight_column"
    if not name:
        return
    types = {column.name: column.data_type for column in extra_columns}
    if name not in types:
        known = ", ".join(types) or "none"
        raise InvalidSpec(
            f"{field} names {name!r}, which is no extra column of {spec.training_set}; it has: {known}.",
            field=field,
        )
    if types[name] not in WEIGHT_TYPES:
        raise InvalidSpec(
            f"{field} names {name!r}, which is {types[name]}: weights are numbers.", field=field
        )
