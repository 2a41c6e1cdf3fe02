"""The values of a model's output tensor, as its signature declares them."""

from __future__ import annotations

from flywheel_common.arrays import Array
from flywheel_common.scoring.errors import WrongShape
from flywheel_common.signature import OutputKind, OutputSpec


def row_shapes(output: OutputSpec) -> list[tuple[int, ...]]:
    """The shapes after the rows that an output tensor may have."""
    shapes: list[tuple[int, ...]] = [(output.width,)]
    if output.kind in (OutputKind.BINARY, OutputKind.REGRESSION):
        shapes.append(())
    if output.kind is OutputKind.BINARY:
        shapes.append((2,))
    return shapes


def output_values(output: OutputSpec, tensor: Array, rows: int) -> Array:
    """[rows, width] of an output tensor [rows, width]; also of [rows] for BINARY and REGRESSION, and of
    [rows, 2] for BINARY, whose second column is the probability. Raises WrongShape for every other shape,
    and when the tensor is neither float32 nor float64."""
    row_shape = tensor.shape[1:]
    if tensor.dtype.char in "fd" and tensor.shape[:1] == (rows,):
        if row_shape == (output.width,):
            return tensor
        if row_shape in row_shapes(output):
            return tensor[:, 1:] if row_shape else tensor.reshape(rows, 1)
    raise WrongShape(
        f"Output {output.tensor} is {tensor.dtype} {list(tensor.shape)}: a {output.kind.name} model of "
        f"{rows} rows returns float32 or float64 [{rows}, {output.width}]."
    )
