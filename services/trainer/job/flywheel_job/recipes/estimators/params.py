"""The parameters of an estimator job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flywheel_job.recipes.tasks import Task


@dataclass(frozen=True)
class EstimatorParams:
    """Which estimator is fitted, for which task."""

    library: Literal["sklearn", "xgboost", "lightgbm"]
    task: Task = "binary"
    estimator: str = ""
    """Class of scikit-learn, such as `sklearn.ensemble.RandomForestClassifier`; empty: logistic or ridge
    regression. Not used for the other libraries."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the estimator's constructor."""
    holdout_fraction: float = 0.2
    weight_column: str = ""
    """Extra column with the weight of each row; empty: all rows have the same weight."""
