"""The values of a model's output tensor, as its signature declares them."""

from __future__ import annotations

from flywheel_common.arrays import Array
from flywheel_common.signature import OutputKind, OutputSpec
from flywheel_inference.models.errors import WrongShape


def output_values(output: OutputSpec, tensor: Array, rows: int) -> Array:
    """[rows, width] of an output tensor [rows, width]; also of [rows] for BINARY and REGRESSION, and of
    [rows, 2] for BINARY, whose second column is the probability. Raises WrongShape for every other shape,
    and when the tensor is neither float32 nor float64."""
    shape = tensor.shape
    if tensor.dtype.char in "fd" and shape[:1] == (rows,):
        if shape[1:] == (output.width,):
            return tensor
        if len(shape) == 1 and output.kind in (OutputKind.BINARY, OutputKind.REGRESSION):
            return tensor.reshape(rows, 1)
        if shape[1:] == (2,) and output.kind is OutputKind.BINARY:
            return tensor[:, 1:]
    raise WrongShape(
        f"Output {output.tensor} is {tensor.dtype} {list(shape)}: a {output.kind.name} model of "
        f"{rows} rows returns float32 or float64 [{rows}, {output.width}]."
    )
