"""Builds and fits estimators."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel_job.errors import InvalidParams, MissingPackage
from flywheel_job.recipes.estimators.params import EstimatorParams
from flywheel_job.scoring import Tensor
from flywheel_job.signature import Input

DEFAULTS = {
    "binary": "sklearn.linear_model.LogisticRegression",
    "multiclass": "sklearn.linear_model.LogisticRegression",
    "regression": "sklearn.linear_model.Ridge",
}
TREES = ("sklearn.tree", "sklearn.ensemble")


def fit(
    params: EstimatorParams,
    inputs: tuple[Input, ...],
    rows: Tensor,
    labels: npt.NDArray[Any],
    weights: npt.NDArray[np.float64] | None,
    seed: int,
) -> Any:
    """A fitted estimator for rows `[rows, inputs]`; null numbers are NaN, unknown categories -1.

    Raises InvalidParams for unknown classes and settings, MissingPackage.
    """
    try:
        estimator = _build(params, seed)
        if params.library != "sklearn":
            return estimator.fit(rows, labels, sample_weight=weights)
        pipeline = _with_preparation(estimator, inputs)
        return (
            pipeline.fit(rows, labels, estimator__sample_weight=weights)
            if weights is not None
            else (pipeline.fit(rows, labels))
        )
    except TypeError as error:
        raise InvalidParams(f"The estimator does not accept its settings: {error}.") from error


def predict(params: EstimatorParams, estimator: Any, rows: Tensor) -> npt.NDArray[np.float64]:
    """The scores `[rows, outputs]` of the estimator itself."""
    if params.task == "regression":
        return np.asarray(estimator.predict(rows), dtype=np.float64).reshape(len(rows), 1)
    probabilities = np.asarray(estimator.predict_proba(rows), dtype=np.float64)
    return probabilities[:, 1:] if params.task == "binary" else probabilities


def _build(params: EstimatorParams, seed: int) -> Any:
    settings = dict(params.settings)
    suffix = "Regressor" if params.task == "regression" else "Classifier"
    if params.library == "xgboost":
        settings = {"random_state": seed, "n_jobs": 0, "enable_categorical": False} | settings
        return package("xgboost").__dict__[f"XGB{suffix}"](**settings)
    if params.library == "lightgbm":
        settings = {"random_state": seed, "verbose": -1, "deterministic": True} | settings
        return package("lightgbm").__dict__[f"LGBM{suffix}"](**settings)
    name = params.estimator or DEFAULTS[params.task]
    module, _, attribute = name.rpartition(".")
    if not module.startswith("sklearn."):
        raise InvalidParams(f"estimator is {name!r}, which is no class of scikit-learn.")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidParams(f"estimator is {name!r}, which does not exist: {error}.") from error
    wanted = "regressor" if params.task == "regression" else "classifier"
    base = getattr(package("sklearn.base"), f"{wanted.title()}Mixin")
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise InvalidParams(f"estimator is {name!r}, which is no {wanted}.")
    accepted = kind().get_params()
    return kind(**({"random_state": seed} if "random_state" in accepted else {}) | settings)


def _with_preparation(estimator: Any, inputs: tuple[Input, ...]) -> Any:
    """A pipeline that fills in null numbers by their mean, scales them, and encodes categories as one-hot.

    Trees get numbers as they are: scaling would change nothing but the rounding of their thresholds.
    """
    compose, pipeline = package("sklearn.compose"), package("sklearn.pipeline")
    preprocessing, impute = package("sklearn.preprocessing"), package("sklearn.impute")
    numbers = [place for place, one in enumerate(inputs) if not one.categorical]
    categories = [place for place, one in enumerate(inputs) if one.categorical]
    parts = []
    if numbers:
        steps = [impute.SimpleImputer(strategy="mean", keep_empty_features=True)]
        if not type(estimator).__module__.startswith(TREES):
            steps.append(preprocessing.StandardScaler())
        parts.append(("numbers", pipeline.make_pipeline(*steps), numbers))
    if categories:
        codes = [np.arange(-1, len(inputs[place].vocabulary), dtype=np.float32) for place in categories]
        encoder = preprocessing.OneHotEncoder(
            categories=codes, handle_unknown="ignore", sparse_output=False, dtype=np.float32
        )
        parts.append(("categories", encoder, categories))
    return pipeline.Pipeline([("prepared", compose.ColumnTransformer(parts)), ("estimator", estimator)])


def package(name: str) -> Any:
    """An installed module. Raises MissingPackage."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingPackage(f"The job needs the package {error.name!r}, which is not installed.") from error
