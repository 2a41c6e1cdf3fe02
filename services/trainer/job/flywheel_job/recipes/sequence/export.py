"""Export of a decoder to ONNX: the tokens of a row → the probabilities of the next token."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from flywheel_job.context import Context
from flywheel_job.errors import InvalidExport
from flywheel_job.recipes.onnx_graph import OPSET, export_module
from flywheel_job.recipes.sequence.model import DecoderShape
from flywheel_job.scoring import INPUT, SCORE, Tensor, open_session
from flywheel_job.signature import Input, Signature

PARITY_TOLERANCE = 1e-5


class NextToken(nn.Module):
    """INPUT `[rows, length + 1]` (float32) → SCORE `[rows, vocabulary]`.

    A row is as long as in training, so that the feature that the model learned from is also its input. The
    first token of a row is not read: the model never saw a token at the place after it. Values that are no
    tokens become the nearest one.
    """

    def __init__(self, decoder: nn.Module, vocabulary: int) -> None:
        super().__init__()
        self.decoder, self.vocabulary = decoder, vocabulary

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        tokens = torch.nan_to_num(rows[:, 1:]).clamp(0, self.vocabulary - 1).to(torch.int64)
        probabilities: torch.Tensor = torch.softmax(self.decoder(tokens)[:, -1], dim=-1)
        return probabilities


def export_and_store(
    ctx: Context,
    column: str,
    decoder: nn.Module,
    shape: DecoderShape,
    examples: Any,
    val_loss: float | None,
) -> None:
    """Export the decoder, compare both on the examples, and store model and report."""
    module = NextToken(decoder, shape.vocabulary).eval()
    rows = np.ascontiguousarray(examples, dtype=np.float32)
    model = export_module(module, rows)
    parity = check_parity(module, model, rows)
    metrics = {} if val_loss is None else {"val_loss": val_loss, "perplexity": math.exp(min(val_loss, 700))}
    inputs = tuple(Input(f"{column}_{place}", "INT64") for place in range(shape.length + 1))
    ctx.export(
        model,
        Signature(inputs, shape.vocabulary),
        rows,
        framework=f"torch {torch.__version__.split('+')[0]}, onnx opset {OPSET}",
        metrics=metrics,
        report={"task": "multiclass", "parity": parity},
    )


def check_parity(module: nn.Module, model: bytes, rows: Tensor) -> float:
    """Largest difference of a probability. Raises InvalidExport above PARITY_TOLERANCE."""
    with torch.no_grad():
        expected = module(torch.from_numpy(rows)).numpy()
    worst = float(np.abs(open_session(model).run([SCORE], {INPUT: rows})[0] - expected).max())
    if not worst <= PARITY_TOLERANCE:
        raise InvalidExport(
            f"ONNX and torch differ by {worst:g} on {len(rows)} rows: {PARITY_TOLERANCE:g} is allowed."
        )
    return worst
