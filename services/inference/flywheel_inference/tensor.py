"""From feature columns to the model's input tensor.

The signature names the inputs in order; the tensor is float32 [rows, inputs], null numeric = NaN, categorical = index in
the vocabulary, unknown or null = -1 (docs/architecture.md, The model's contract).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Array, Mask
from flywheel_inference.release import InputSpec

PRESENT, NULL, NOT_FOUND, STALE = 1, 2, 3, 4
STATUS_NAMES = {PRESENT: "PRESENT", NULL: "NULL", NOT_FOUND: "NOT_FOUND", STALE: "STALE"}
UNKNOWN_CATEGORY = -1.0


@dataclass(frozen=True, slots=True)
class FeatureColumn:
    """One feature of a batch: values [rows] (of text: object), `valid` [rows] = has a value, types.v1.DataType number."""

    name: str
    data_type: int
    values: Array
    valid: Mask

    def take(self, rows: Array) -> FeatureColumn:
        """The rows at these indices."""
        return FeatureColumn(self.name, self.data_type, self.values[rows], self.valid[rows])


@dataclass(frozen=True, slots=True)
class FeatureBlock:
    """The features of a batch. `statuses` [features, rows] holds PRESENT, NULL, NOT_FOUND or STALE; `feature_set` is the
    version that answered; `applied` says of which stream events they are made (lists: partition, next offset, …), for the log."""

    feature_set: str
    columns: tuple[FeatureColumn, ...]
    statuses: npt.NDArray[np.uint8]
    applied: tuple[FeatureColumn, ...] = ()

    @property
    def rows(self) -> int:
        return int(self.statuses.shape[1])

    def take(self, rows: Array) -> FeatureBlock:
        """The rows at these indices, in that order."""
        return FeatureBlock(
            self.feature_set,
            tuple(c.take(rows) for c in self.columns),
            self.statuses[:, rows],
            tuple(c.take(rows) for c in self.applied),
        )


def join(blocks: Sequence[FeatureBlock]) -> FeatureBlock:
    """The rows of several answers of one feature set, one after the other."""
    if len(blocks) == 1:
        return blocks[0]
    return FeatureBlock(
        blocks[0].feature_set,
        join_columns([block.columns for block in blocks]),
        np.concatenate([block.statuses for block in blocks], axis=1),
        join_columns([block.applied for block in blocks]),
    )


def join_columns(parts: Sequence[Sequence[FeatureColumn]]) -> tuple[FeatureColumn, ...]:
    """The same columns of several blocks, one after the other."""
    return tuple(
        FeatureColumn(
            column.name,
            column.data_type,
            np.concatenate([part[i].values for part in parts]),
            np.concatenate([part[i].valid for part in parts]),
        )
        for i, column in enumerate(parts[0])
    )


class MissingFeature(Exception):
    """The feature set's answer lacks an input of the signature."""


class TensorBuilder:
    """Builds the tensor of one signature from answers of one feature set."""

    def __init__(self, inputs: Sequence[InputSpec]) -> None:
        self._inputs = tuple(inputs)
        self._vocabularies: list[dict[str, float] | None] = [
            {value: float(i) for i, value in enumerate(spec.vocabulary)} if spec.vocabulary else None
            for spec in inputs
        ]
        self._names: tuple[str, ...] = ()
        self._places: list[int] = []

    def places(self, block: FeatureBlock) -> list[int]:
        """For each input, the index of its column. Raises MissingFeature."""
        names = tuple(column.name for column in block.columns)
        if names != self._names:
            index = {name: i for i, name in enumerate(names)}
            missing = [spec.name for spec in self._inputs if spec.name not in index]
            if missing:
                raise MissingFeature(
                    f"feature set {block.feature_set} does not answer the model inputs {', '.join(missing)}"
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
        """The inputs as served, in the signature's order; those with a vocabulary as text."""
        columns = []
        for spec, place in zip(self._inputs, self.places(block), strict=True):
            column = block.columns[place]
            if spec.vocabulary and column.values.dtype != object:
                texts = np.array([category(value) for value in column.values.tolist()], dtype=object)
                column = FeatureColumn(column.name, TEXT, texts, column.valid)
            columns.append(column)
        return tuple(columns)


TEXT = 5
"""types.v1.DATA_TYPE_STRING."""


def category(value: Any) -> str:
    """The text of a categorical value as vocabularies write it: true, false, integers without a point."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _numbers(column: FeatureColumn) -> Array:
    if column.values.dtype == object:
        raise MissingFeature(f"{column.name} is text, but the signature gives it no vocabulary")
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
