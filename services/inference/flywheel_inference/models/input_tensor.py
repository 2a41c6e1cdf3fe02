"""The model's input tensor, built from feature columns.

The signature names the inputs in order. The tensor is float32 [rows, inputs]: a null number is NaN, a
category is its index in the vocabulary, an unknown or null category is -1 (docs/architecture.md, The model's
contract).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Array
from flywheel_inference.models.feature_block import FeatureBlock, FeatureColumn
from flywheel_inference.releases.release import InputSpec

UNKNOWN_CATEGORY = -1.0
TEXT = 5
"""types.v1.DATA_TYPE_STRING."""


class MissingFeature(Exception):
    """The feature block lacks an input of the signature, or has text where a number is needed."""


class TensorBuilder:
    """Builds the tensors of one signature from feature blocks."""

    def __init__(self, inputs: Sequence[InputSpec]) -> None:
        self._inputs = tuple(inputs)
        self._vocabularies: list[dict[str, float] | None] = [
            {value: float(i) for i, value in enumerate(spec.vocabulary)} if spec.vocabulary else None
            for spec in inputs
        ]
        self._names: tuple[str, ...] = ()
        self._places: list[int] = []

    def places(self, block: FeatureBlock) -> list[int]:
        """The index of each input's column in the block. Raises MissingFeature."""
        names = tuple(column.name for column in block.columns)
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

    def build(self, block: FeatureBlock) -> npt.NDArray[np.float32]:
        """[rows, inputs] float32, C order. Raises MissingFeature."""
        places = self.places(block)
        tensor = np.empty((block.rows, len(places)), dtype=np.float32)
        for j, place in enumerate(places):
            column, vocabulary = block.columns[place], self._vocabularies[j]
            if vocabulary is None:
                tensor[:, j] = _numbers(column)
            else:
                tensor[:, j] = _indices(column, vocabulary)
        return tensor

    def served(self, block: FeatureBlock) -> tuple[FeatureColumn, ...]:
        """The inputs as served, in the signature's order; inputs with a vocabulary as text."""
        columns = []
        for spec, place in zip(self._inputs, self.places(block), strict=True):
            column = block.columns[place]
            if spec.vocabulary and column.values.dtype != object:
                texts = np.array([category(value) for value in column.values.tolist()], dtype=object)
                column = FeatureColumn(column.name, TEXT, texts, column.valid)
            columns.append(column)
        return tuple(columns)


def category(value: Any) -> str:
    """A categorical value as vocabularies write it: true, false, integers without a decimal point."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _numbers(column: FeatureColumn) -> Array:
    if column.values.dtype == object:
        raise MissingFeature(f"{column.name} is text, but its input in the signature has no vocabulary")
    if column.valid.all():
        return column.values
    return np.where(column.valid, column.values.astype(np.float32), np.float32(np.nan))


def _indices(column: FeatureColumn, vocabulary: dict[str, float]) -> list[float]:
    values = column.values.tolist()
    if column.values.dtype != object:
        values = [category(value) for value in values]
    find = vocabulary.get
    if column.valid.all():
        return [find(value, UNKNOWN_CATEGORY) for value in values]
    return [
        find(value, UNKNOWN_CATEGORY) if ok else UNKNOWN_CATEGORY
        for value, ok in zip(values, column.valid.tolist(), strict=True)
    ]
