"""The specification of a TRAIN job, and its validation."""

from __future__ import annotations

from dataclasses import dataclass, field

from flywheel_common.errors import InvalidArgument
from flywheel_trainer.recipes.tabular.spec import Hyperparameters

MAX_WORKERS = 1024


@dataclass(frozen=True)
class TrainSpec:
    """What a TRAIN job does; zero values are filled in by `with_defaults`."""

    experiment: str
    training_set: str
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    warm_start: str = ""
    workers: int = 1
    gpus_per_worker: int = 0


def check_spec(spec: TrainSpec) -> None:
    """Raises InvalidArgument INVALID_SPEC naming the field."""
    hyper = spec.hyperparameters
    problems = [
        (not spec.experiment, "experiment", "names the experiment of the run"),
        (not spec.training_set, "training_set", "names a training set"),
        (not 1 <= spec.workers <= MAX_WORKERS, "workers", f"is between 1 and {MAX_WORKERS}"),
        (
            not all(1 <= size <= 65_536 for size in hyper.hidden_sizes),
            "tabular.hidden_sizes",
            "are between 1 and 65536",
        ),
        (len(hyper.hidden_sizes) > 32, "tabular.hidden_sizes", "has at most 32 layers"),
        (not 1 <= hyper.epochs <= 100_000, "tabular.epochs", "is between 1 and 100000"),
        (hyper.batch_size < 1, "tabular.batch_size", "is at least 1"),
        (not 0 < hyper.learning_rate < 1e3, "tabular.learning_rate", "is above 0"),
        (not 0 <= hyper.weight_decay < 1e3, "tabular.weight_decay", "is not negative"),
        (not 0 <= hyper.dropout < 1, "tabular.dropout", "is at least 0 and below 1"),
        (not 0 < hyper.holdout_fraction < 1, "tabular.holdout_fraction", "is between 0 and 1"),
        (hyper.seed >= 1 << 32, "tabular.seed", "is below 2^32"),
    ]
    for wrong, name, rule in problems:
        if wrong:
            raise InvalidArgument(f"train.{name} {rule}.", reason="INVALID_SPEC", field=f"train.{name}")
    if spec.warm_start and "/versions/" not in spec.warm_start:
        raise InvalidArgument(
            "train.tabular.warm_start names a model version (projects/{project}/models/{model}/versions/{version}).",
            reason="INVALID_SPEC",
        )
