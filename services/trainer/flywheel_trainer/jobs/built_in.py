"""The parameters of built-in recipes, checked when a job is submitted and not by its workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flywheel_common.errors import FlywheelError
from flywheel_job.params import parse_params
from flywheel_job.recipes.estimators.params import EstimatorParams
from flywheel_job.recipes.sequence import params as sequence
from flywheel_trainer.jobs.code import CodeRecipe
from flywheel_trainer.jobs.errors import InvalidSpec
from flywheel_trainer.jobs.ports import TrainingSet
from flywheel_trainer.jobs.train_spec import TrainSpec

FIELD = "train.code.params_json"
ESTIMATOR = "flywheel_job.recipes.estimators.training:train"
TOKENS = ("INT64_LIST", "FLOAT32_LIST", "FLOAT64_LIST", "FLOAT32_VECTOR", "FLOAT64_VECTOR")
"""Types of columns that can hold tokens."""


def check_built_in(code: CodeRecipe, workers: int) -> None:
    """Raises InvalidSpec if a built-in recipe does not accept its parameters or the number of workers."""
    check = CHECKS.get(code.function)
    if check is None or code.source_sha256:
        return
    try:
        for params in [code.params, *(code.params | one.params for one in code.schedule)]:
            check(params, workers)
    except FlywheelError as error:
        raise InvalidSpec(f"{FIELD}: {error.message}", field=FIELD) from error


def check_columns(code: CodeRecipe, rows: TrainingSet) -> None:
    """Raises InvalidSpec if a training set has no column that a built-in recipe can read its tokens from."""
    if code.function != sequence.TRAIN or code.source_sha256:
        return
    name = str(code.params.get("column", sequence.SequenceParams.column))
    types = {column.name: column.data_type for column in (*rows.columns, *rows.extra_columns)}
    if types.get(name) not in TOKENS:
        problem = f"is of type {types[name]}" if name in types else f"is no column of {rows.name}"
        raise InvalidSpec(
            f"{FIELD}: column names {name!r}, which {problem}; tokens are one of {', '.join(TOKENS)}.",
            field=FIELD,
        )


def task_of(spec: TrainSpec) -> str:
    """The task of the recipe; empty for the code of users and for recipes without one."""
    if spec.code is None:
        return spec.hyperparameters.task
    if spec.code.function != ESTIMATOR or spec.code.source_sha256:
        return ""
    return str(spec.code.params.get("task", EstimatorParams.task))


def _check_estimator(params: Mapping[str, Any], workers: int) -> None:
    parse_params(EstimatorParams, params)
    if workers != 1:
        raise InvalidSpec(f"An estimator is fitted by one worker, not {workers}.", field="train.workers")


CHECKS: Mapping[str, Callable[[Mapping[str, Any], int], object]] = {
    sequence.TRAIN: sequence.checked_params,
    ESTIMATOR: _check_estimator,
}
"""The function of a recipe → its check of (params, workers)."""
