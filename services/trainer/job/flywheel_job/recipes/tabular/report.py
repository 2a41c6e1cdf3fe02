"""The report and the files of a trained network: export, calibration, threshold, metrics."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from flywheel_job.artifacts import MODEL, REPORT, WEIGHTS
from flywheel_job.evaluation.calibration import fit_platt
from flywheel_job.evaluation.metrics import best_threshold, evaluate, f1, log_loss
from flywheel_job.recipes.tabular.dataset import Input
from flywheel_job.recipes.tabular.export import OPSET, check_parity, to_onnx
from flywheel_job.recipes.tabular.network import TabularNet
from flywheel_job.recipes.tabular.preparation import InitialWeights, PreparedData
from flywheel_job.recipes.tabular.scoring import Tensor, onnx_scores, open_session
from flywheel_job.recipes.tabular.spec import TabularSpec

GOLDEN_ROWS = 16


def export_and_evaluate(
    spec: TabularSpec, data: PreparedData, network: TabularNet, start: InitialWeights, best_epoch: int
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Export, calibrate and evaluate the network, and return (report, file contents by name)."""
    split, hyper = data.split, spec.hyperparameters
    model = to_onnx(network, data.rows[:3])
    golden = golden_rows(data.rows[split.train_end :], data.inputs)
    parity = check_parity(network, model, np.concatenate([golden, data.rows[split.train_end :][:2000]]))
    session = open_session(model, threads=torch.get_num_threads())
    scores = onnx_scores(session, data.rows[split.train_end :])
    labels = data.labels[split.train_end :]
    cut = split.calibration_end - split.train_end
    weights = None if data.weights is None else data.weights[split.train_end :]
    old, new = (None, None) if weights is None else (weights[:cut], weights[cut:])
    platt = fit_platt(labels[:cut], scores[:cut], old)
    calibrated = platt.apply(scores)
    threshold = best_threshold(labels[:cut], calibrated[:cut], old)
    metrics = evaluate(labels[cut:], calibrated[cut:], new).as_metrics() | {
        "log_loss_raw": log_loss(labels[cut:], scores[cut:], new),
        "f1": f1(labels[cut:], calibrated[cut:], threshold, new),
        "best_epoch": float(best_epoch),
        "train_rows": float(split.train_end),
    }
    inputs = [asdict(one) for one in data.inputs]
    buffer = io.BytesIO()
    torch.save(
        {
            "inputs": [one | {"vocabulary": list(one["vocabulary"])} for one in inputs],
            "hidden_sizes": list(hyper.hidden_sizes),
            "state": network.state_dict(),
        },
        buffer,
    )
    report: dict[str, Any] = {
        "training_set": spec.training_set,
        "framework": f"torch {torch.__version__.split('+')[0]}, onnx opset {OPSET}",
        "inputs": inputs,
        "metrics": metrics,
        "calibration": asdict(platt),
        "threshold": threshold,
        "parity": parity,
        "split": asdict(split),
        "weight_column": hyper.weight_column,
        "warm_start": start.note,
        "warm_started_from": start.note if start.state is not None else "",
        "golden": {
            "row_count": len(golden),
            "inputs": base64.b64encode(golden.astype("<f4").tobytes()).decode(),
            "scores": base64.b64encode(onnx_scores(session, golden).astype("<f4").tobytes()).decode(),
        },
    }
    files = {MODEL: model, WEIGHTS: buffer.getvalue(), REPORT: json.dumps(report, sort_keys=True).encode()}
    return report, files


def golden_rows(rows: Tensor, inputs: tuple[Input, ...]) -> Tensor:
    """Evenly spaced rows of the holdout, and one row in which every input is missing."""
    picked = rows[np.unique(np.linspace(0, len(rows) - 1, GOLDEN_ROWS - 1).astype(int))]
    all_missing = np.array([[-1.0 if one.categorical else np.nan for one in inputs]], dtype=np.float32)
    return np.concatenate([picked, all_missing])
