"""The function of the estimator recipe: `flywheel_job.recipes.estimators.training:train`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel_job.context import Context
from flywheel_job.errors import UnsupportedStrategy
from flywheel_job.evaluation.importance import importance_metrics
from flywheel_job.evaluation.tasks import multiclass_metrics, regression_metrics
from flywheel_job.launch import LABEL, TIME
from flywheel_job.recipes.binary import evaluate_binary, golden_rows
from flywheel_job.recipes.dataset import (
    Split,
    check_weights,
    choose_inputs,
    encode,
    in_time_order,
    split_by_time,
    weights_of,
)
from flywheel_job.recipes.estimators.export import check_parity, to_onnx
from flywheel_job.recipes.estimators.fitting import fit, package, predict
from flywheel_job.recipes.estimators.params import EstimatorParams
from flywheel_job.recipes.labels import outputs_of, task_labels
from flywheel_job.recipes.tasks import Task
from flywheel_job.scoring import INPUT, SCORE, onnx_outputs, open_session
from flywheel_job.signature import Signature


def train(ctx: Context) -> None:
    """Fit on the older rows, convert, evaluate on the holdout, and store the model."""
    params = ctx.parse_params(EstimatorParams)
    if ctx.world_size != 1:
        raise UnsupportedStrategy(f"An estimator is fitted by one worker, not {ctx.world_size}.")
    columns = ctx.data_set().columns
    extra = [params.weight_column] if params.weight_column else []
    frame = in_time_order(ctx.table("train", [*(one.name for one in columns), *extra, LABEL, TIME]))
    split = split_by_time(frame[TIME], params.holdout_fraction)
    inputs = choose_inputs(columns, frame.head(split.train_end))
    rows, labels = encode(frame, inputs), task_labels(frame, params.task)
    weights = weights_of(frame, params.weight_column)
    if params.task == "binary":
        check_weights(weights, labels, split)
    end = split.train_end
    outputs = outputs_of(params.task, labels, end)
    estimator = fit(
        params, inputs, rows[:end], labels[:end], None if weights is None else weights[:end], ctx.seed
    )
    model = to_onnx(params, estimator, len(inputs), outputs)
    golden = golden_rows(rows[end:], inputs)
    checked = np.concatenate([golden, rows[end:][:2000]])
    parity = check_parity(model, checked, predict(params, estimator, checked))
    session = open_session(model)
    scores = session.run([SCORE], {INPUT: np.ascontiguousarray(rows[end:])})[0]
    found = report(params.task, scores, labels, weights, split)
    found["metrics"]["train_rows"] = float(end)
    ctx.log({key: value for key, value in found["metrics"].items() if np.isfinite(value)}, 1)
    found["metrics"] |= importance_metrics(
        lambda some: onnx_outputs(session, some),
        rows[end:],
        labels[end:],
        None if weights is None else weights[end:],
        task=params.task,
        names=[one.name for one in inputs],
        seed=ctx.seed,
    )
    ctx.export(
        model,
        Signature(inputs, outputs),
        golden,
        framework=f"{params.library} {package(params.library).__version__}",
        report=found
        | {
            "task": params.task,
            "parity": parity,
            "weight_column": params.weight_column,
            "warm_started_from": "",
        },
    )


def report(
    task: Task,
    scores: npt.NDArray[np.float32],
    labels: npt.NDArray[Any],
    weights: npt.NDArray[np.float64] | None,
    split: Split,
) -> dict[str, Any]:
    """Metrics of the holdout, and its rows; for binary classification also calibration and threshold.

    The other tasks have no calibration rows: the metrics are those of the whole holdout.
    """
    if task == "binary":
        return evaluate_binary(scores[:, 0], labels, weights, split)
    held = slice(split.train_end, None)
    some = None if weights is None else weights[held]
    whole = asdict(split.without_calibration())
    if task == "multiclass":
        return {"metrics": multiclass_metrics(labels[held], scores, some), "split": whole}
    values = scores[:, 0].astype(np.float64)
    return {"metrics": regression_metrics(labels[held], values, some), "split": whole}
