"""Export of a torch module to the graph that models of recipes have."""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from flywheel_job.scoring import INPUT, SCORE, Tensor

OPSET = 18


def export_module(module: nn.Module, examples: Tensor) -> bytes:
    """The graph INPUT `[rows, inputs]` → SCORE `[rows, outputs]` with a dynamic number of rows."""
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    rows = torch.from_numpy(
        np.ascontiguousarray(examples[:3] if len(examples) >= 3 else np.repeat(examples, 3, axis=0))
    )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            module.eval(),
            (rows,),
            str(path),
            dynamo=True,
            verbose=False,
            external_data=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[SCORE],
            dynamic_shapes=({0: torch.export.Dim("rows", min=1, max=1 << 20)},),
        )
        return path.read_bytes()
