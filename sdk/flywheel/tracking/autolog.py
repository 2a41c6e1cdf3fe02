"""Logs params and metrics of training libraries through their own callbacks.

    model = xgboost.XGBClassifier(callbacks=[fw.autolog.xgboost(run)])
    model = lightgbm.train(params, data, valid_sets=[valid], callbacks=[fw.autolog.lightgbm(run)])
    trainer = lightning.Trainer(callbacks=[fw.autolog.lightning(run)])
    search = GridSearchCV(...).set_callbacks(fw.autolog.sklearn(run))
    fw.autolog.log_estimator(run, search.fit(X, y))

A library is imported only by the functions for it.
"""

from __future__ import annotations

import json
import numbers
from collections.abc import Mapping
from typing import Any

from flywheel.tracking.run import Run
from flywheel.tracking.values import MAX_KEY, MAX_VALUE

__all__ = ["lightgbm", "lightning", "log_estimator", "sklearn", "xgboost"]

_CURVES = ("loss_curve_", "validation_scores_", "train_score_", "validation_score_", "oob_scores_")
"""Attributes of scikit-learn's estimators with a value for each iteration."""


def log_texts(run: Run, params: Mapping[str, Any], prefix: str = "") -> None:
    """Log what a library calls parameters: None and callables are left out, long texts are cut."""
    run.log_params(
        {
            f"{prefix}{key}"[:MAX_KEY]: str(value).replace("\0", "")[:MAX_VALUE]
            for key, value in params.items()
            if value is not None and not callable(value)
        }
    )


def xgboost(run: Run) -> Any:
    """A callback of XGBoost: the parameters, and each metric of each data set by round."""
    from xgboost.callback import TrainingCallback

    class Callback(TrainingCallback):
        """Logs to one run."""

        def before_training(self, model: Any) -> Any:
            booster = model if hasattr(model, "save_config") else None
            if booster is not None:
                log_texts(run, _flat(json.loads(booster.save_config()).get("learner", {})), "xgboost.")
            return model

        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            run.log(
                {
                    f"{data}-{metric}": _last(values)
                    for data, metrics in evals_log.items()
                    for metric, values in metrics.items()
                },
                step=epoch,
            )
            return False

    return Callback()


def _last(values: Any) -> float:
    # Cross validation has pairs of mean and deviation.
    value = values[-1]
    return float(value[0] if isinstance(value, tuple | list) else value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of the parameters in XGBoost's configuration."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            inner = (
                prefix
                if key.endswith("_param") or key in ("gradient_booster", "objective")
                else f"{prefix}{key}."
            )
            found |= _flat(value, inner)
        elif isinstance(value, str | int | float) and value != "":
            found[f"{prefix}{key}"] = value
    return found


class LightgbmCallback:
    """Logs the parameters, and each metric of each data set by iteration."""

    order = 25
    """Before the callback of early stopping, which raises at the last iteration."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __call__(self, environment: Any) -> None:
        if environment.iteration == environment.begin_iteration:
            log_texts(self._run, environment.params, "lightgbm.")
        results = environment.evaluation_result_list or ()
        self._run.log(
            {f"{data}-{metric}": value for data, metric, value, *_ in results}, step=environment.iteration
        )


def lightgbm(run: Run) -> LightgbmCallback:
    """A callback for `callbacks` of LightGBM."""
    return LightgbmCallback(run)


def lightning(run: Run) -> Any:
    """A callback of Lightning (`lightning` or `pytorch_lightning`): the hyperparameters, and the metrics that
    the module logs, at the end of each epoch by the number of its steps."""
    base: Any = object
    for package in ("lightning.pytorch", "pytorch_lightning"):
        try:
            base = __import__(f"{package}.callbacks", fromlist=["Callback"]).Callback
            break
        except ImportError:
            continue

    class Callback(base):
        """Logs to one run; only the process of rank 0 logs."""

        def __init__(self) -> None:
            super().__init__()
            self._logged: dict[str, tuple[int, float]] = {}

        def on_fit_start(self, trainer: Any, module: Any) -> None:
            if trainer.is_global_zero:
                log_texts(run, dict(getattr(module, "hparams", None) or {}), "lightning.")

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self._log(trainer)

        def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
            # The check before training has no result that means anything.
            if not getattr(trainer, "sanity_checking", False):
                self._log(trainer)

        def on_test_epoch_end(self, trainer: Any, module: Any) -> None:
            self._log(trainer)

        def _log(self, trainer: Any) -> None:
            if not trainer.is_global_zero:
                return
            step = int(trainer.global_step)
            values = {key: float(value) for key, value in trainer.callback_metrics.items()}
            # The hooks of one epoch see the same values, and some of the epoch before.
            new = {key: value for key, value in values.items() if self._logged.get(key, (-1,))[0] != step}
            self._logged |= {key: (step, value) for key, value in new.items()}
            run.log(new, step=step)

    return Callback()


class SklearnCallback:
    """`FitCallback` of scikit-learn 1.9: the parameters, and with `score` the score on the training data
    after each iteration."""

    def __init__(self, run: Run, *, score: bool = False) -> None:
        self._run, self._score = run, score

    def setup(self, estimator: Any, context: Any) -> None:
        log_texts(self._run, estimator.get_params(), f"{type(estimator).__name__}.")

    def teardown(self, estimator: Any, context: Any) -> None:
        """Nothing is left to do."""

    def on_fit_task_begin(self, estimator: Any, context: Any, **data: Any) -> None:
        """Nothing is logged before a task."""

    def on_fit_task_end(
        self,
        estimator: Any,
        context: Any,
        *,
        fitted_estimator: Any = None,
        X: Any = None,  # noqa: N803 - the name that scikit-learn passes
        y: Any = None,
        **_: Any,
    ) -> bool:
        # The task without a parent is the whole fit, after its iterations.
        iteration = getattr(context, "parent", None) is not None
        if self._score and iteration and fitted_estimator is not None and X is not None:
            name = type(estimator).__name__
            self._run.log({f"{name}.score": fitted_estimator.score(X, y)}, step=int(context.task_id))
        return False


def sklearn(run: Run, *, score: bool = False) -> SklearnCallback:
    """A callback for `set_callbacks` of scikit-learn 1.9, which few estimators have; see also
    `log_estimator`."""
    return SklearnCallback(run, score=score)


def log_estimator(run: Run, estimator: Any, rows: Any = None, labels: Any = None) -> None:
    """Log what a fitted estimator of scikit-learn keeps: parameters, its curves by iteration, and of a search
    each candidate's mean score and the best parameters; with rows also its score."""
    name = type(estimator).__name__
    log_texts(run, estimator.get_params(), f"{name}.")
    for attribute in _CURVES:
        for step, value in enumerate(_numbers(getattr(estimator, attribute, None))):
            run.log({f"{name}.{attribute.rstrip('_')}": value}, step=step)
    results = getattr(estimator, "cv_results_", None)
    if isinstance(results, Mapping):
        for key in sorted(key for key in results if key.startswith(("mean_test_", "mean_train_"))):
            for step, value in enumerate(_numbers(results[key])):
                run.log({f"{name}.{key}": value}, step=step)
        best = getattr(estimator, "best_params_", None)
        if best is not None:
            log_texts(run, best, f"{name}.best.")
            run.log({f"{name}.best_score": estimator.best_score_}, step=0)
    if rows is not None:
        run.log({f"{name}.score": estimator.score(rows, labels)}, step=0)


def _numbers(values: Any) -> list[float]:
    """The values of a sequence of numbers; empty for anything else."""
    try:
        found = list(values)
    except TypeError:
        return []
    return [float(v) for v in found] if all(isinstance(v, numbers.Real) for v in found) else []
