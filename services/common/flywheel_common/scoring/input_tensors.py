"""The model's input tensors, built from feature columns as its signature declares them.

A null number is NaN in a FLOAT32 or FLOAT64 tensor and a null text is empty; a category is its index in the
vocabulary, an unknown or null category is -1. A row that a tensor cannot hold exactly is named and left out
of the model call: a null in a BOOL tensor or a null number in an INT64 tensor, an integer that a float
tensor would round, a number above the range of FLOAT32 (docs/architecture.md, The model's contract).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from flywheel_common.arrays import Array, Mask
from flywheel_common.scoring.feature_block import FeatureBlock, FeatureColumn
from flywheel_common.signature import BOOL, FLOAT32, FLOAT64, INT64, STRING, Signature, TensorSpec

UNKNOWN_CATEGORY = -1
_DTYPES: dict[int, np.dtype[Any]] = {
    BOOL: np.dtype("?"),
    INT64: np.dtype("<i8"),
    FLOAT32: np.dtype("<f4"),
    FLOAT64: np.dtype("<f8"),
}
_KINDS = {BOOL: "b", INT64: "bi", FLOAT32: "bif", FLOAT64: "bif"}
"""Tensor type → kinds of numpy types that it takes."""
_EXACT = {FLOAT32: 2**24, FLOAT64: 2**53}
"""Float type → the largest integer up to which it holds every integer."""

Tensors = Mapping[str, Array]
"""Tensors by name, [rows, …]: bool, int64, float32, float64, or object with str for STRING."""


class MissingFeature(Exception):
    """The feature block lacks an input of the signature, or has it in another type or size."""


class ModelInputs(NamedTuple):
    """The input tensors of a batch. `unfit`: row that a tensor cannot hold → why; its elements have no
    meaning."""

    tensors: Tensors
    unfit: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class _Part:
    """One input in its tensor: its place in the signature, its elements (a column, or a slice for a vector),
    dimensions of its values, size of a vector or 0, and the index of each category."""

    place: int
    elements: int | slice
    ndim: int
    size: int
    lookup: dict[str, int] | None


@dataclass(frozen=True, slots=True)
class _Plan:
    """One tensor and its parts."""

    spec: TensorSpec
    parts: tuple[_Part, ...]
    elements: int


class TensorBuilder:
    """Builds the tensors of one signature from feature blocks."""

    def __init__(self, signature: Signature) -> None:
        self._inputs = signature.inputs
        self._plans = tuple(_plan(signature, tensor) for tensor in signature.input_tensors)
        self._takes_matrix = (
            len(self._plans) == 1
            and self._plans[0].spec.data_type == FLOAT32
            and not any(spec.vocabulary for spec in self._inputs)
        )
        """The model has one FLOAT32 tensor, which is the matrix of a block whose columns are the inputs."""
        self._names: list[str] = []
        self._places: list[int] = []

    def places(self, block: FeatureBlock) -> list[int]:
        """The index of each input's column in the block. Raises MissingFeature."""
        names = [column.name for column in block.columns]
        if names != self._names:
            index = {name: i for i, name in enumerate(names)}
            missing = [spec.name for spec in self._inputs if spec.name not in index]
            if missing:
                raise MissingFeature(
                    f"feature set {block.feature_set} lacks the model inputs {', '.join(missing)}"
                )
            self._places = [index[spec.name] for spec in self._inputs]
            self._names = names
        return self._places

    def build(self, block: FeatureBlock) -> ModelInputs:
        """The tensors in C order. Raises MissingFeature."""
        places = self.places(block)
        if block.matrix is not None and self._takes_matrix and places == list(range(len(block.columns))):
            (plan,) = self._plans
            if block.matrix.shape[1] == plan.elements:
                return ModelInputs({plan.spec.name: block.matrix.reshape(block.rows, *plan.spec.shape)}, {})
        unfit: dict[int, str] = {}
        tensors: dict[str, Array] = {}
        for plan in self._plans:
            columns = [block.columns[places[part.place]] for part in plan.parts]
            if plan.spec.data_type == STRING:
                tensor = _texts(plan, columns, block.rows)
            else:
                tensor = _numbers(plan, columns, block.rows, unfit)
            shape = plan.spec.shape
            tensors[plan.spec.name] = tensor if len(shape) == 1 else tensor.reshape(block.rows, *shape)
        return ModelInputs(tensors, unfit)

    def served(self, block: FeatureBlock) -> tuple[FeatureColumn, ...]:
        """The inputs as served, in the signature's order; inputs with a vocabulary as text."""
        columns = []
        for spec, place in zip(self._inputs, self.places(block), strict=True):
            column = block.columns[place]
            if spec.vocabulary and column.values.dtype != object:
                texts = np.array([category(value) for value in column.values.tolist()], dtype=object)
                column = FeatureColumn(column.name, STRING, texts, column.valid)
            columns.append(column)
        return tuple(columns)


def category(value: Any) -> str:
    """A categorical value as vocabularies write it: true, false, integers without a decimal point."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _plan(signature: Signature, tensor: TensorSpec) -> _Plan:
    parts, start = [], 0
    for place, spec in enumerate(signature.inputs):
        if spec.tensor != tensor.name:
            continue
        lookup = {value: i for i, value in enumerate(spec.vocabulary)} if spec.vocabulary else None
        if spec.vector_size:
            parts.append(_Part(place, slice(start, start + spec.elements), 2, spec.vector_size, lookup))
        else:
            parts.append(_Part(place, start, 1, 0, lookup))
        start += spec.elements
    return _Plan(tensor, tuple(parts), start)


def _numbers(plan: _Plan, columns: Sequence[FeatureColumn], rows: int, unfit: dict[int, str]) -> Array:
    data_type = plan.spec.data_type
    tensor = np.empty((rows, plan.elements), _DTYPES[data_type])
    kinds = _KINDS[data_type]
    masks: list[Mask] = []
    integers: list[Array] = []
    overflow = False
    with np.errstate(over="raise"):
        for part, column in zip(plan.parts, columns, strict=True):
            if part.lookup is not None:
                tensor[:, part.elements] = _indices(column, part.lookup)
                continue
            values = column.values
            kind = values.dtype.kind
            if kind not in kinds or values.ndim != part.ndim or (part.size and values.shape[1] != part.size):
                raise _other_type(plan, column)
            masks.append(column.valid)
            if kind == "i":
                integers.append(values)
            try:
                tensor[:, part.elements] = values
            except FloatingPointError:
                overflow = True
                with np.errstate(over="ignore"):
                    tensor[:, part.elements] = values
    # One reduction over all columns costs less than one for each, and the ufunc less than the method.
    if masks and not np.logical_and.reduce(np.concatenate(masks)):
        _nulls(plan, columns, tensor, unfit)
    if integers and data_type in _EXACT:
        stacked = np.concatenate(integers)
        overflow |= bool(stacked.max() > _EXACT[data_type] or stacked.min() < -_EXACT[data_type])
    if overflow:
        _inexact(plan, columns, tensor, unfit)
    return tensor


def _nulls(plan: _Plan, columns: Sequence[FeatureColumn], tensor: Array, unfit: dict[int, str]) -> None:
    """NaN for each null of a float tensor; else the row is unfit."""
    for part, column in zip(plan.parts, columns, strict=True):
        if part.lookup is not None or column.valid.all():
            continue
        null = ~column.valid
        if plan.spec.data_type in _EXACT:
            # A mask of a view of the columns costs a fifth of a mask together with their index.
            tensor[:, part.elements][null] = np.nan
            continue
        tensor[null, part.elements] = 0
        for row in np.flatnonzero(null).tolist():
            unfit.setdefault(row, f"{column.name} is null, and tensor {plan.spec.name} has no null")


def _inexact(plan: _Plan, columns: Sequence[FeatureColumn], tensor: Array, unfit: dict[int, str]) -> None:
    """Rows with an integer that the float tensor would round, or a number above its range."""
    for part, column in zip(plan.parts, columns, strict=True):
        if part.lookup is not None:
            continue
        with np.errstate(over="ignore"):
            stored = column.values.astype(tensor.dtype).astype(np.float64)
        if column.values.dtype.kind == "i":
            inside = stored < 2.0**63
            wrong = ~inside | (np.where(inside, stored, 0).astype(np.int64) != column.values)
        else:
            wrong = np.isinf(stored) & np.isfinite(column.values)
        wrong = wrong.any(axis=1) if wrong.ndim == 2 else wrong
        for row in np.flatnonzero(wrong & column.valid).tolist():
            unfit.setdefault(row, f"tensor {plan.spec.name} cannot hold the value of {column.name} exactly")


def _texts(plan: _Plan, columns: Sequence[FeatureColumn], rows: int) -> Array:
    tensor = np.empty((rows, plan.spec.elements), dtype=object)
    for part, column in zip(plan.parts, columns, strict=True):
        if column.data_type != STRING:
            raise _other_type(plan, column)
        tensor[:, part.elements] = column.values
        if not column.valid.all():
            tensor[~column.valid, part.elements] = ""
    return tensor


def _indices(column: FeatureColumn, lookup: dict[str, int]) -> list[int]:
    values = column.values.tolist()
    if column.values.dtype != object:
        values = [category(value) for value in values]
    find = lookup.get
    if column.valid.all():
        return [find(value, UNKNOWN_CATEGORY) for value in values]
    return [
        find(value, UNKNOWN_CATEGORY) if ok else UNKNOWN_CATEGORY
        for value, ok in zip(values, column.valid.tolist(), strict=True)
    ]


def _other_type(plan: _Plan, column: FeatureColumn) -> MissingFeature:
    return MissingFeature(f"{column.name} has another type or size than its input of tensor {plan.spec.name}")
