"""Compares the ONNX graph of a version with its signature, its golden rows and its feature set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flywheel_common.arrays import Array
from flywheel_common.signature import (
    FLOAT32,
    FLOAT64,
    TENSOR_TYPES,
    OutputKind,
    OutputSpec,
    Signature,
    TensorSpec,
)
from flywheel_common.tensors import array_of
from flywheel_registry.models.declaration import output_shapes
from flywheel_registry.models.version import DEFAULT_TOLERANCE, GoldenRows

LISTED_ROWS = 5
"""How many golden rows that differ a problem names."""


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """One input or output of a graph.

    `data_type` is the name of its element type, such as FLOAT32, or a name of ONNX that no tensor of a
    signature has. `shape` has None for a free dimension, and is None when the graph declares no shape.
    """

    name: str
    data_type: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, slots=True)
class GraphReport:
    """What ONNX and ONNX Runtime found in a version's model file.

    `problem` is why the file cannot be loaded, `run_problem` why it cannot answer the golden rows. `output`
    is its answer.
    """

    problem: str = ""
    inputs: Sequence[GraphTensor] = ()
    outputs: Sequence[GraphTensor] = ()
    run_problem: str = ""
    output: Array | None = None


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature of a feature set: the number of its `types.v1.DataType` and its size if it is a vector."""

    data_type: int
    vector_size: int = 0


def report_problems(report: GraphReport, signature: Signature, golden: GoldenRows) -> list[str]:
    """One sentence per difference between a graph, the signature and the golden rows."""
    if report.problem:
        return [f"The model file cannot be loaded: {report.problem}"]
    if found := signature_differences(report, signature):
        return found
    if report.run_problem:
        return [f"ONNX Runtime cannot answer the golden rows: {report.run_problem}"]
    if report.output is None:
        return ["ONNX Runtime did not answer the golden rows."]
    return golden_differences(report.output, golden, signature)


def signature_differences(report: GraphReport, signature: Signature) -> list[str]:
    """One sentence per difference between the inputs and outputs of a graph and a signature."""
    wanted = {tensor.name: tensor for tensor in signature.input_tensors}
    given = {tensor.name: tensor for tensor in report.inputs}
    found = [
        f"The graph has no input {name}, which the signature declares." for name in wanted.keys() - given
    ]
    found += [
        f"The graph needs the input {name}, which the signature lacks." for name in given.keys() - wanted
    ]
    for name in wanted.keys() & given.keys():
        found += _input_differences(given[name], wanted[name])
    found.sort()
    outputs = {tensor.name: tensor for tensor in report.outputs}
    output = outputs.get(signature.output.tensor)
    if output is None:
        names = ", ".join(outputs) or "none"
        return [*found, f"The graph has no output {signature.output.tensor}, only {names}."]
    if output.data_type not in (TENSOR_TYPES[FLOAT32], TENSOR_TYPES[FLOAT64]):
        found.append(f"Output {output.name} has type {output.data_type}, it must be FLOAT32 or FLOAT64.")
    shapes = output_shapes(signature.output, 0)
    if output.shape is not None and not any(_shape_fits(output.shape, shape[1:]) for shape in shapes):
        allowed = " or ".join(_text((None, *shape[1:])) for shape in shapes)
        found.append(
            f"Output {output.name} has shape {_text(output.shape)}, "
            f"a {signature.output.kind.name} output needs {allowed}."
        )
    return found


def _input_differences(given: GraphTensor, wanted: TensorSpec) -> list[str]:
    found = []
    data_type = TENSOR_TYPES[wanted.data_type]
    if given.data_type != data_type:
        found.append(f"Input {given.name} has type {given.data_type}, the signature declares {data_type}.")
    if given.shape is not None and not _shape_fits(given.shape, wanted.shape):
        declared = _text((None, *wanted.shape))
        found.append(f"Input {given.name} has shape {_text(given.shape)}, the signature declares {declared}.")
    return found


def _shape_fits(given: Sequence[int | None], row_shape: Sequence[int]) -> bool:
    """Whether a shape has free rows and then `row_shape`; a free dimension fits every size."""
    if len(given) != len(row_shape) + 1 or given[0] is not None:
        return False
    return all(g is None or g == wanted for g, wanted in zip(given[1:], row_shape, strict=True))


def _text(shape: Sequence[int | None]) -> str:
    sizes = [
        "rows" if i == 0 and size is None else "?" if size is None else str(size)
        for i, size in enumerate(shape)
    ]
    return f"[{', '.join(sizes)}]"


def golden_differences(output: Array, golden: GoldenRows, signature: Signature) -> list[str]:
    """One sentence when a model's output differs from the golden output."""
    if golden.output is None:
        return ["The version has no golden rows."]
    shapes = output_shapes(signature.output, golden.row_count)
    if output.shape not in shapes:
        allowed = " or ".join(str(list(shape)) for shape in shapes)
        return [f"The model answers the golden rows with shape {list(output.shape)}, not {allowed}."]
    wanted = _per_row(array_of(golden.output), signature.output)
    answered = _per_row(output, signature.output)
    difference = np.abs(answered - wanted).max(axis=1)
    # A NaN is a difference, also where both are NaN: it is no answer.
    wrong = np.flatnonzero(~(difference <= (golden.tolerance or DEFAULT_TOLERANCE)))
    if not wrong.size:
        return []
    rows = "; ".join(
        f"row {row}: {_values(answered[row])} instead of {_values(wanted[row])}"
        for row in wrong[:LISTED_ROWS]
    )
    return [f"The model does not reproduce {wrong.size} of {golden.row_count} golden rows: {rows}."]


def _per_row(output: Array, spec: OutputSpec) -> Array:
    """The values of an output, [rows, width]; of two columns of a BINARY one, the second."""
    rows = np.asarray(output, np.float64).reshape(len(output), -1)
    return rows[:, 1:] if spec.kind is OutputKind.BINARY and rows.shape[1] == 2 else rows


def _values(row: Array) -> str:
    values = np.ravel(row).tolist()
    return ", ".join(f"{value:.7g}" for value in values[:LISTED_ROWS]) + (
        ", …" if len(values) > LISTED_ROWS else ""
    )


def feature_problems(
    signature: Signature, feature_set: str, features: Mapping[str, Feature] | None
) -> list[str]:
    """One sentence per input that the feature set does not have with its type; None: there is no such set."""
    if features is None:
        return [f"Feature set {feature_set} does not exist."]
    found = []
    for i in signature.inputs:
        feature = features.get(i.name)
        if feature is None:
            found.append(f"Feature set {feature_set} has no feature {i.name}.")
        elif (feature.data_type, feature.vector_size) != (i.data_type, i.vector_size):
            found.append(
                f"Feature {i.name} of {feature_set} has data type {feature.data_type} and vector size "
                f"{feature.vector_size}, the signature declares {i.data_type} and {i.vector_size}."
            )
    return found
