"""Features of a batch, in columns, with the status of every value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Array, Mask

PRESENT, NULL, NOT_FOUND, STALE, NOT_YET_VALID = 1, 2, 3, 4, 5
"""Statuses of a feature value: numbers of feature.v1.FeatureStatus."""
STATUS_NAMES = {
    PRESENT: "PRESENT",
    NULL: "NULL",
    NOT_FOUND: "NOT_FOUND",
    STALE: "STALE",
    NOT_YET_VALID: "NOT_YET_VALID",
}


@dataclass(frozen=True, slots=True)
class FeatureColumn:
    """One feature of a batch: `values` [rows] (text: object), `valid` [rows], and a types.v1.DataType
    number."""

    name: str
    data_type: int
    values: Array
    valid: Mask

    @property
    def size_bytes(self) -> int:
        """Memory of the values; of texts and lists, their lengths."""
        if self.values.dtype != object:
            return int(self.values.nbytes)
        return sum(len(value) for value in self.values if value is not None)

    def take(self, rows: Array) -> FeatureColumn:
        """The rows at these indices."""
        return FeatureColumn(self.name, self.data_type, self.values[rows], self.valid[rows])


@dataclass(frozen=True, slots=True)
class FeatureBlock:
    """The features of a batch, from one feature set version.

    `statuses` [features, rows] holds the status of each value (`STATUS_NAMES`). `applied` holds the stream
    offsets that the features contain (lists: partition, next offset, …), for the prediction log. `matrix`
    [rows, elements]: the columns side by side as float32, in C order, NaN for nulls; None if float32 does not
    hold each of them exactly, or if the block has only columns.
    """

    feature_set: str
    columns: tuple[FeatureColumn, ...]
    statuses: npt.NDArray[np.uint8]
    applied: tuple[FeatureColumn, ...] = ()
    matrix: npt.NDArray[np.float32] | None = None

    @property
    def rows(self) -> int:
        return int(self.statuses.shape[1])

    @property
    def size_bytes(self) -> int:
        """Memory of the feature values."""
        return sum(column.size_bytes for column in self.columns)

    def not_yet_valid(self) -> list[str]:
        """Per row the names of features with this status, separated by commas; empty if no row has one."""
        if NOT_YET_VALID not in self.statuses.tobytes():
            return []
        names = np.array([column.name for column in self.columns])
        return [",".join(names[row]) for row in (self.statuses == NOT_YET_VALID).T]

    def take(self, rows: Array) -> FeatureBlock:
        """The rows at these indices, in that order."""
        return FeatureBlock(
            self.feature_set,
            tuple(c.take(rows) for c in self.columns),
            self.statuses[:, rows],
            tuple(c.take(rows) for c in self.applied),
            None if self.matrix is None else self.matrix[rows],
        )


def concatenate_blocks(blocks: Sequence[FeatureBlock]) -> FeatureBlock:
    """The rows of several blocks of one feature set, one after the other."""
    matrices = [block.matrix for block in blocks if block.matrix is not None]
    return FeatureBlock(
        blocks[0].feature_set,
        concatenate_columns([block.columns for block in blocks]),
        np.concatenate([block.statuses for block in blocks], axis=1),
        concatenate_columns([block.applied for block in blocks]),
        np.concatenate(matrices) if len(matrices) == len(blocks) else None,
    )


def concatenate_columns(parts: Sequence[Sequence[FeatureColumn]]) -> tuple[FeatureColumn, ...]:
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
