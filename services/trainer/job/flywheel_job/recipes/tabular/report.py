"""The report and the files of a trained network: export, calibration, threshold, metrics."""

from __future__ import annotations

import io
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from flywheel_job.artifacts import WEIGHTS
from flywheel_job.context import Context
from flywheel_job.evaluation.importance import importance_metrics
from flywheel_job.evaluation.tasks import multiclass_metrics, regression_metrics
from flywheel_job.recipes.binary import evaluate_binary, golden_rows
from flywheel_job.recipes.onnx_graph import OPSET
from flywheel_job.recipes.tabular.export import check_parity, to_onnx
from flywheel_job.recipes.tabular.network import TabularNet
from flywheel_job.recipes.tabular.preparation import InitialWeights, PreparedData
from flywheel_job.recipes.tabular.spec import TabularSpec
from flywheel_job.scoring import Tensor, onnx_outputs, open_session
from flywheel_job.signature import Signature


def export_and_evaluate(
    ctx: Context,
    spec: TabularSpec,
    data: PreparedData,
    network: TabularNet,
    start: InitialWeights,
    best_epoch: int,
) -> None:
    """Export, calibrate and evaluate the network, and store model, report and weights."""
    split, hyper = data.split, spec.hyperparameters
    held = data.rows[split.train_end :]
    model = to_onnx(network, data.rows[:3])
    golden = golden_rows(held, data.inputs)
    parity = check_parity(network, model, np.concatenate([golden, held[:2000]]))
    session = open_session(model, threads=torch.get_num_threads())
    found = evaluation(spec, data, onnx_outputs(session, held))
    found["metrics"] |= {"best_epoch": float(best_epoch), "train_rows": float(split.train_end)}
    ctx.log(found["metrics"], hyper.epochs)
    found["metrics"] |= importance_metrics(
        lambda rows: onnx_outputs(session, rows),
        held,
        data.labels[split.train_end :],
        None if data.weights is None else data.weights[split.train_end :],
        task=hyper.task,
        names=[one.name for one in data.inputs],
        seed=hyper.seed,
    )
    ctx.export(
        model,
        Signature(data.inputs, data.outputs),
        golden,
        framework=f"torch {torch.__version__.split('+')[0]}, onnx opset {OPSET}",
        report=found
        | {
            "task": hyper.task,
            "parity": parity,
            "teacher": spec.teacher.name if spec.teacher else "",
            "weight_column": hyper.weight_column,
            "warm_start": start.note,
            "warm_started_from": start.note if start.state is not None else "",
        },
    )
    inputs = [asdict(one) for one in data.inputs]
    buffer = io.BytesIO()
    torch.save(
        {
            "inputs": [one | {"vocabulary": list(one["vocabulary"])} for one in inputs],
            "hidden_sizes": list(hyper.hidden_sizes),
            "task": hyper.task,
            "state": network.state_dict(),
        },
        buffer,
    )
    ctx.artifact(WEIGHTS, buffer.getvalue())


def evaluation(spec: TabularSpec, data: PreparedData, scores: Tensor) -> dict[str, Any]:
    """The metrics of the newest rows from the scores `[rows, outputs]` of the holdout; for binary
    classification also calibration and threshold."""
    split, task = data.split, spec.hyperparameters.task
    if task == "binary":
        return evaluate_binary(scores[:, 0], data.labels, data.weights, split)
    labels, newest = data.labels[split.calibration_end :], scores[split.calibration_end - split.train_end :]
    weights = None if data.weights is None else data.weights[split.calibration_end :]
    if task == "multiclass":
        metrics = multiclass_metrics(labels, newest, weights)
    else:
        metrics = regression_metrics(labels, newest[:, 0].astype(np.float64), weights)
    return {"metrics": metrics, "split": asdict(split)}
