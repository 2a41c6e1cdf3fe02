"""Export of a network to ONNX, and the check that both compute the same scores."""

from __future__ import annotations

import numpy as np
import torch

from flywheel_job.recipes.onnx_graph import export_module
from flywheel_job.recipes.tabular.network import Scorer, TabularNet
from flywheel_job.scoring import Tensor, onnx_outputs, open_session

PARITY_TOLERANCE = 1e-5


class ParityError(RuntimeError):
    """The exported graph and the network compute different scores."""


def to_onnx(network: TabularNet, example: Tensor) -> bytes:
    """The graph INPUT `[rows, inputs]` → SCORE `[rows, 1]` with a dynamic number of rows."""
    return export_module(Scorer(network), example)


def torch_outputs(network: TabularNet, rows: Tensor) -> Tensor:
    """Scores `[rows, outputs]` of the network itself."""
    with torch.no_grad():
        scores: Tensor = Scorer(network).eval()(torch.from_numpy(np.ascontiguousarray(rows))).numpy()
    return scores


def torch_scores(network: TabularNet, rows: Tensor) -> Tensor:
    """The first score of each row, `[rows]`."""
    return torch_outputs(network, rows)[:, 0]


def check_parity(network: TabularNet, model: bytes, rows: Tensor) -> float:
    """Largest difference over `rows`, in one batch and row by row, relative to values above 1.

    Raises ParityError above PARITY_TOLERANCE.
    """
    session = open_session(model)
    expected = torch_outputs(network, rows)
    alone = [onnx_outputs(session, rows[i : i + 1]) for i in range(min(len(rows), 3))]
    found = np.concatenate([onnx_outputs(session, rows), *alone])
    expected = np.concatenate([expected, expected[: len(alone)]])
    worst = float((np.abs(found - expected) / np.maximum(1.0, np.abs(expected))).max())
    if not worst <= PARITY_TOLERANCE:
        raise ParityError(
            f"ONNX and torch differ by {worst:g} on {len(rows)} rows: {PARITY_TOLERANCE:g} is allowed."
        )
    return worst
