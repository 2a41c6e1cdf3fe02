"""Scores of an ONNX model by ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

INPUT, SCORE = "INPUT", "SCORE"
Tensor = npt.NDArray[np.float32]


def open_session(model: bytes, threads: int = 1) -> Any:
    """An ONNX Runtime session on the CPU."""
    import onnxruntime  # the service, which uses the names of the tensors, does not have it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnx_outputs(session: Any, rows: Tensor, batch: int = 65_536) -> Tensor:
    """Scores `[rows, outputs]` of at least one row, computed in batches to bound memory."""
    parts = [
        session.run([SCORE], {INPUT: np.ascontiguousarray(rows[start : start + batch])})[0]
        for start in range(0, len(rows), batch)
    ]
    return np.concatenate(parts)


def onnx_scores(session: Any, rows: Tensor, batch: int = 65_536) -> Tensor:
    """The first score of each row, `[rows]`."""
    if not len(rows):
        return np.empty(0, dtype=np.float32)
    return onnx_outputs(session, rows, batch)[:, 0]
