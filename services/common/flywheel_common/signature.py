"""The model contract: the input tensors of a model, the features in them, and what its output means.

Registry, trainer, gateway and monitor share it. `data_type` is always the number of a `types.v1.DataType`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

BOOL, INT64, FLOAT32, FLOAT64, STRING = 1, 2, 3, 4, 5
FLOAT32_VECTOR, FLOAT64_VECTOR = 24, 25
TENSOR_TYPES = {BOOL: "BOOL", INT64: "INT64", FLOAT32: "FLOAT32", FLOAT64: "FLOAT64", STRING: "STRING"}
"""Data types that a tensor can have."""
INPUT = "INPUT"
"""The input tensor of a signature that declares none."""
SCORE = "SCORE"
"""The output tensor of a signature that declares none."""
MAX_INPUTS = 10_000
MAX_WIDTH = 65_536
"""Largest number of elements per row of a tensor."""

_FITS: dict[int, tuple[int, ...]] = {
    BOOL: (BOOL,),
    INT64: (BOOL, INT64, 7),
    FLOAT32: (BOOL, INT64, FLOAT32, FLOAT64, 7, FLOAT32_VECTOR, FLOAT64_VECTOR),
    FLOAT64: (BOOL, INT64, FLOAT32, FLOAT64, 7, FLOAT32_VECTOR, FLOAT64_VECTOR),
    STRING: (STRING,),
}
"""Tensor type → data types of the features without a vocabulary that it can hold. 7 is TIMESTAMP."""


class OutputKind(IntEnum):
    """What a model's output means; the numbers of `types.v1.OutputKind`."""

    BINARY = 1
    MULTICLASS = 2
    REGRESSION = 3
    VECTOR = 4


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One feature of the model. With a vocabulary, the model gets the value's index in it, or -1."""

    name: str
    data_type: int
    vocabulary: tuple[str, ...] = ()
    tensor: str = INPUT
    vector_size: int = 0

    @property
    def elements(self) -> int:
        """Elements per row of its tensor."""
        return self.vector_size or 1


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input tensor: its type and the dimensions after the rows; () for a tensor of shape [rows]."""

    name: str
    data_type: int
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Elements per row."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """The output tensor that is read, and what it means."""

    kind: OutputKind = OutputKind.BINARY
    tensor: str = SCORE
    class_names: tuple[str, ...] = ()
    positive_class: str = ""
    unit: str = ""
    size: int = 0

    @property
    def width(self) -> int:
        """Values per row of an answer: the classes or elements; 1 for BINARY and REGRESSION."""
        if self.kind is OutputKind.MULTICLASS:
            return len(self.class_names)
        return self.size if self.kind is OutputKind.VECTOR else 1

    @property
    def fingerprint(self) -> bytes:
        """8 bytes, equal for outputs whose values mean the same: the start of the SHA-256 of kind, positive
        class, class names, unit and size, as JSON. Stored values carry it."""
        meaning = [self.kind.name, self.positive_class, list(self.class_names), self.unit, self.size]
        return hashlib.sha256(json.dumps(meaning).encode()).digest()[:8]


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and output of a model version."""

    inputs: tuple[InputSpec, ...] = ()
    tensors: tuple[TensorSpec, ...] = ()
    output: OutputSpec = field(default_factory=OutputSpec)

    @property
    def input_tensors(self) -> tuple[TensorSpec, ...]:
        """The declared tensors, or the one FLOAT32 tensor `INPUT` [rows, inputs]."""
        if self.tensors:
            return self.tensors
        return (TensorSpec(INPUT, FLOAT32, (sum(i.elements for i in self.inputs),)),)

    def inputs_of(self, tensor: str) -> tuple[InputSpec, ...]:
        """The inputs of a tensor, in order."""
        return tuple(i for i in self.inputs if i.tensor == tensor)


def problems(signature: Signature) -> list[str]:
    """One sentence per rule that the signature breaks; empty: it is valid."""
    return [
        *_input_problems(signature.inputs),
        *_tensor_problems(signature),
        *_output_problems(signature.output),
    ]


def _input_problems(inputs: Sequence[InputSpec]) -> list[str]:
    found = []
    names = [i.name for i in inputs]
    if len(names) > MAX_INPUTS or not all(names) or len(set(names)) != len(names):
        found.append(f"The signature needs unique, non-empty input names, at most {MAX_INPUTS}.")
    for i in inputs:
        vector = i.data_type in (FLOAT32_VECTOR, FLOAT64_VECTOR)
        if len(set(i.vocabulary)) != len(i.vocabulary):
            found.append(f"The vocabulary of input {i.name} repeats a value: list each value once.")
        if vector and i.vocabulary:
            found.append(f"Input {i.name} is a vector and has a vocabulary: only scalars have one.")
        if vector != (i.vector_size > 0):
            found.append(f"Input {i.name} has vector_size {i.vector_size}: vectors need one, scalars have 0.")
    return found


def _tensor_problems(signature: Signature) -> list[str]:
    found = []
    tensors = signature.input_tensors
    names = [t.name for t in tensors]
    if not all(names) or len(set(names)) != len(names):
        found.append("The signature needs unique, non-empty tensor names.")
    unknown = sorted({i.tensor for i in signature.inputs} - set(names))
    if unknown:
        found.append(f"Inputs name tensors that the signature does not declare: {', '.join(unknown)}.")
    for tensor in tensors:
        inputs = signature.inputs_of(tensor.name)
        if tensor.data_type not in TENSOR_TYPES:
            found.append(f"Tensor {tensor.name} must be one of {', '.join(TENSOR_TYPES.values())}.")
            continue
        if not inputs and signature.tensors:
            found.append(f"Tensor {tensor.name} has no input.")
        elements = sum(i.elements for i in inputs)
        if tensor.elements != elements or elements > MAX_WIDTH or not all(tensor.shape):
            found.append(
                f"Tensor {tensor.name} has {tensor.elements} elements per row, its inputs have {elements}; "
                f"both must be equal and at most {MAX_WIDTH}."
            )
        found += [
            f"Input {i.name} does not fit into tensor {tensor.name} of type {TENSOR_TYPES[tensor.data_type]}."
            for i in inputs
            if not _fits(i, tensor.data_type)
        ]
    return found


def _fits(i: InputSpec, tensor_type: int) -> bool:
    if i.vocabulary:
        return tensor_type in (INT64, FLOAT32, FLOAT64)
    return i.data_type in _FITS[tensor_type]


def _output_problems(output: OutputSpec) -> list[str]:
    found = []
    names = output.class_names
    if output.kind is OutputKind.MULTICLASS and (
        len(names) < 2 or not all(names) or len(set(names)) != len(names)
    ):
        found.append("A MULTICLASS output needs at least two unique, non-empty class names.")
    if output.kind is OutputKind.VECTOR and not 1 <= output.size <= MAX_WIDTH:
        found.append(f"A VECTOR output needs a size from 1 to {MAX_WIDTH}, not {output.size}.")
    if len(names) > MAX_WIDTH:
        found.append(f"A MULTICLASS output has at most {MAX_WIDTH} classes.")
    if not output.tensor:
        found.append("The output needs the name of its tensor.")
    return found
