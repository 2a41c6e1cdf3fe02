"""The parameters of a tabular training job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from flywheel_job.launch import Column, LaunchSpec
from flywheel_job.model_file import ModelFile
from flywheel_job.recipes.tasks import Task

MODULE = "flywheel_job.recipes.tabular.training"
CHECK, TRAIN, EXPORT = f"{MODULE}:check", f"{MODULE}:train", f"{MODULE}:export"
"""The functions of the recipe."""
CHANGEABLE = ("learning_rate", "weight_decay", "dropout", "batch_size")
"""Hyperparameters that may change at a checkpoint: the network keeps its shape, and the rows their split."""
TEACHER = "teacher"
"""Name of the teacher among the models of the job."""


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters of the recipe, with defaults (TabularRecipe in the API)."""

    hidden_sizes: tuple[int, ...] = (64, 32)
    epochs: int = 10
    batch_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    dropout: float = 0.0
    seed: int = 0
    holdout_fraction: float = 0.2
    weight_column: str = ""
    """Extra column of the training set with the weight of each row; empty: all rows have the same weight."""
    task: Task = "binary"
    teacher_weight: float = 0.5
    """Share of the teacher's answers in the loss; the labels have the rest. Not used without a teacher."""
    teacher_temperature: float = 2.0
    """Divisor of the logits of student and teacher; not used for regression."""

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        return asdict(cls())

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `asdict` followed by a round trip through JSON."""
        return cls(**{**fields, "hidden_sizes": tuple(fields["hidden_sizes"])})


@dataclass(frozen=True)
class WarmStart:
    """Initial weights: address and digest of the file, and the model version that it belongs to."""

    version: str
    uri: str
    sha256: str


@dataclass(frozen=True)
class TabularSpec:
    """What the recipe trains, on which data set."""

    training_set: str
    uri: str
    columns: tuple[Column, ...]
    workers: int = 1
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    warm_start: WarmStart | None = None
    teacher: ModelFile | None = None
    """Model whose answers the network learns besides the labels."""

    def params(self) -> dict[str, Any]:
        """The parameters of the job; `of` is the inverse."""
        warm = asdict(self.warm_start) if self.warm_start else None
        params: dict[str, Any] = json.loads(json.dumps(asdict(self.hyperparameters)))
        if self.teacher is None:
            del params["teacher_weight"], params["teacher_temperature"]
        return params | {"warm_start": warm}

    def models(self) -> dict[str, Any]:
        """The models that the job reads."""
        return {TEACHER: self.teacher.to_json()} if self.teacher else {}

    @classmethod
    def of(cls, launch: LaunchSpec) -> Self:
        """The specification in the data set and the parameters of a job."""
        data, params = launch.data["train"], dict(launch.params)
        warm = params.pop("warm_start", None)
        return cls(
            training_set=data.name,
            uri=data.uri,
            columns=data.columns,
            workers=launch.workers,
            hyperparameters=Hyperparameters.from_json(Hyperparameters.defaults() | params),
            warm_start=WarmStart(**warm) if warm else None,
            teacher=ModelFile.from_json(launch.models[TEACHER]) if TEACHER in launch.models else None,
        )
