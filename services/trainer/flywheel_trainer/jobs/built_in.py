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

FIELD = "train.code.params_json"


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


def _check_estimator(params: Mapping[str, Any], workers: int) -> None:
    parse_params(EstimatorParams, params)
    if workers != 1:
        raise InvalidSpec(f"An estimator is fitted by one worker, not {workers}.", field="train.workers")


CHECKS: Mapping[str, Callable[[Mapping[str, Any], int], object]] = {
    sequence.TRAIN: sequence.checked_params,
    "flywheel_job.recipes.estimators.training:train": _check_estimator,
}
"""The function of a recipe → its check of (params, workers)."""
