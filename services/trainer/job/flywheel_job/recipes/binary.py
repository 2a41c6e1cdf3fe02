"""Calibration, threshold and metrics of a binary classifier on its holdout, and rows for its golden test."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel_job.evaluation.calibration import fit_platt
from flywheel_job.evaluation.metrics import best_threshold, evaluate, f1, log_loss
from flywheel_job.recipes.dataset import Split
from flywheel_job.scoring import Tensor
from flywheel_job.signature import Input

GOLDEN_ROWS = 16


def evaluate_binary(
    scores: Tensor, labels: npt.NDArray[Any], weights: npt.NDArray[np.float64] | None, split: Split
) -> dict[str, Any]:
    """The parts `metrics`, `calibration`, `threshold` and `split` of a report.

    `scores` are those of the holdout (the rows from `split.train_end`), `labels` and `weights` those of all
    rows. Calibration and threshold are fitted on the older part of the holdout, metrics computed on the newer
    part.
    """
    cut = split.calibration_end - split.train_end
    labels = labels[split.train_end :]
    held = None if weights is None else weights[split.train_end :]
    old, new = (None, None) if held is None else (held[:cut], held[cut:])
    platt = fit_platt(labels[:cut], scores[:cut], old)
    calibrated = platt.apply(scores)
    threshold = best_threshold(labels[:cut], calibrated[:cut], old)
    metrics = evaluate(labels[cut:], calibrated[cut:], new).as_metrics() | {
        "log_loss_raw": log_loss(labels[cut:], scores[cut:], new),
        "f1": f1(labels[cut:], calibrated[cut:], threshold, new),
    }
    return {
        "metrics": metrics,
        "calibration": asdict(platt),
        "threshold": threshold,
        "split": asdict(split),
    }


def golden_rows(rows: Tensor, inputs: tuple[Input, ...]) -> Tensor:
    """Evenly spaced rows of the holdout, and one row in which every input is missing."""
    picked = rows[np.unique(np.linspace(0, len(rows) - 1, GOLDEN_ROWS - 1).astype(int))]
    all_missing = np.array([[-1.0 if one.categorical else np.nan for one in inputs]], dtype=np.float32)
    return np.concatenate([picked, all_missing])
