"""Signatures and golden rows of ONNX files, read from the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel.onnx_weights import one_file
from flywheel_common.signature import (
    BOOL,
    FLOAT32,
    FLOAT64,
    INT64,
    STRING,
    TENSOR_TYPES,
    InputSpec,
    OutputKind,
    OutputSpec,
    Signature,
    TensorSpec,
    problems,
)

Tensors = Mapping[str, npt.NDArray[Any]]
"""Input tensor → its rows."""
GENERATED_ROWS = 16
_TYPES = {
    "tensor(bool)": BOOL,
    "tensor(int64)": INT64,
    "tensor(float)": FLOAT32,
    "tensor(double)": FLOAT64,
    "tensor(string)": STRING,
}
"""Type in ONNX Runtime → data type of a tensor."""


class SignatureError(ValueError):
    """A graph does not fit the feature set; `differences` has one sentence for each difference."""

    def __init__(self, differences: Sequence[str]) -> None:
        super().__init__(" ".join(differences))
        self.differences = tuple(differences)


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature of a feature set, named `view__feature`, and its vocabulary as a model input."""

    name: str
    data_type: int
    vector_size: int = 0
    vocabulary: tuple[str, ...] = ()

    @property
    def elements(self) -> int:
        """Elements per row of a tensor."""
        return self.vector_size or 1


class OnnxFile:
    """An ONNX file, opened by ONNX Runtime in this process: open only files that you trust.

    `content` has the weights too, also those that are in other files of the folder.
    """

    def __init__(self, file: Path) -> None:
        """Raises ImportError without the extra `flywheel[onnx]`, ValueError when the file is no model, or has
        weights in other files that are too large for one file or cannot be read."""
        import onnxruntime

        self.content = one_file(file)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(
                self.content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ValueError(f"{file} is no model that ONNX Runtime can load: {error}") from error

    def signature(self, features: Sequence[Feature], output: OutputSpec) -> Signature:
        """The signature that takes its tensors and their types and shapes from the graph.

        A tensor that is named like a feature holds it; one other tensor holds all other features, in the
        order of the feature set. `output.tensor` empty: the only output of numbers. Raises SignatureError.
        """
        found, specs = [], []
        for one in self._session.get_inputs():
            data_type = _TYPES.get(one.type)
            if data_type is None:
                found.append(f"Input {one.name} has type {one.type}, which no signature has.")
            elif not one.shape or isinstance(one.shape[0], int):
                found.append(f"Input {one.name} has shape {one.shape}: its first dimension must be free.")
            else:
                specs.append(_Tensor(one.name, data_type, tuple(one.shape[1:])))
        inputs, tensors, unassigned = _assigned(specs, features)
        found += unassigned
        signature = Signature(inputs, tensors, self._output(output, found))
        found += problems(signature) if not found else []
        if found:
            raise SignatureError(found)
        return signature

    def _output(self, output: OutputSpec, found: list[str]) -> OutputSpec:
        numbers = {
            one.name: one.shape
            for one in self._session.get_outputs()
            if one.type in ("tensor(float)", "tensor(double)")
        }
        names = ", ".join(numbers) or "none"
        if output.tensor and output.tensor not in numbers:
            found.append(f"The graph has no output {output.tensor} of numbers, only {names}.")
            return output
        if not output.tensor and len(numbers) != 1:
            found.append(f"Name the output: the outputs of numbers are {names}.")
            return replace(output, tensor="?")
        tensor = output.tensor or next(iter(numbers))
        row = numbers[tensor][1:]
        widths = (1, 2) if output.kind is OutputKind.BINARY else (output.width,)
        if all(isinstance(size, int) for size in row) and int(np.prod(row, dtype=np.int64)) not in widths:
            wanted = " or ".join(map(str, widths))
            found.append(f"Output {tensor} has {row} values per row, a {output.kind.name} output {wanted}.")
        return replace(output, tensor=tensor)

    def run(self, rows: Tensors, output: str) -> npt.NDArray[Any]:
        """The output of the graph. Raises ValueError when it refuses the rows."""
        try:
            (answer,) = self._session.run([output], dict(rows))
        except Exception as error:
            raise ValueError(f"The model cannot answer the sample rows: {error}") from error
        return np.asarray(answer)


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    data_type: int
    row_shape: tuple[int | str | None, ...]


def _assigned(
    tensors: Sequence[_Tensor], features: Sequence[Feature]
) -> tuple[tuple[InputSpec, ...], tuple[TensorSpec, ...], list[str]]:
    """The inputs and tensors of a signature, and one sentence per feature or tensor without a counterpart."""
    by_name = {feature.name: feature for feature in features}
    left = [feature for feature in features if feature.name not in {t.name for t in tensors}]
    found: list[str] = []
    specs, inputs, unnamed = [], [], 0
    for tensor in tensors:
        mine = [by_name[tensor.name]] if tensor.name in by_name else left
        if mine is left:
            unnamed += 1
            if unnamed > 1:
                found.append(f"Input {tensor.name} is named like no feature: only one such input is allowed.")
                continue
        elements = sum(feature.elements for feature in mine)
        shape = _row_shape(tensor, elements)
        if shape is None:
            names = ", ".join(feature.name for feature in mine) or "none"
            found.append(
                f"Input {tensor.name} of type {TENSOR_TYPES[tensor.data_type]} has {list(tensor.row_shape)} "
                f"elements per row, its features have {elements}: {names}."
            )
            continue
        specs.append(TensorSpec(tensor.name, tensor.data_type, shape))
        inputs += [InputSpec(f.name, f.data_type, f.vocabulary, tensor.name, f.vector_size) for f in mine]
    if left and not unnamed:
        found.append(f"The graph has no input for {', '.join(feature.name for feature in left)}.")
    return tuple(inputs), tuple(specs), found


def _row_shape(tensor: _Tensor, elements: int) -> tuple[int, ...] | None:
    """The shape of a row; a free dimension takes what is left. None: it does not have these elements."""
    fixed = [size for size in tensor.row_shape if isinstance(size, int)]
    free = len(tensor.row_shape) - len(fixed)
    known = int(np.prod(fixed, dtype=np.int64))
    if free > 1 or known == 0 or elements % known:
        return None
    shape = tuple(size if isinstance(size, int) else elements // known for size in tensor.row_shape)
    return shape if int(np.prod(shape, dtype=np.int64)) == elements else None


def generated_rows(signature: Signature, rows: int = GENERATED_ROWS) -> dict[str, npt.NDArray[Any]]:
    """Rows with the same random values at each call: floats around 0, small integers, categories, texts."""
    random = np.random.default_rng(0)
    made: dict[str, npt.NDArray[Any]] = {}
    for tensor in signature.input_tensors:
        shape = (rows, *tensor.shape)
        if tensor.data_type == BOOL:
            made[tensor.name] = random.integers(0, 2, shape).astype(bool)
        elif tensor.data_type == STRING:
            made[tensor.name] = random.choice(np.array(["", "a", "b", "Ä"], dtype=object), shape)
        elif tensor.data_type == INT64:
            made[tensor.name] = random.integers(0, 4, shape)
        else:
            made[tensor.name] = random.normal(size=shape).astype(
                "<f4" if tensor.data_type == FLOAT32 else "<f8"
            )
        column = 0
        for i in signature.inputs_of(tensor.name):
            if i.vocabulary:
                flat = made[tensor.name].reshape(rows, -1)
                flat[:, column] = random.integers(-1, len(i.vocabulary), rows)
            column += i.elements
    return made


def output_spec(kind: str, tensor: str, class_names: Sequence[str], unit: str, size: int) -> OutputSpec:
    """The output of a kind: `binary`, `multiclass`, `regression` or `vector`. Raises ValueError."""
    kinds = {one.name.lower(): one for one in OutputKind}
    if kind not in kinds:
        raise ValueError(f"kind is {kind!r}, it must be one of {', '.join(kinds)}.")
    return OutputSpec(kinds[kind], tensor, class_names=tuple(class_names), unit=unit, size=size)
