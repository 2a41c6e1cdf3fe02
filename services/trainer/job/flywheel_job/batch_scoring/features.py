"""Feature columns of Arrow batches, as the model's tensors need them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flywheel_common import conversion
from flywheel_common.arrays import Array, Mask
from flywheel_common.columns import DTYPES, VECTORS
from flywheel_common.scoring.feature_block import NULL, PRESENT, FeatureBlock, FeatureColumn
from flywheel_common.signature import FLOAT32, FLOAT64, InputSpec

_FLOATS = {FLOAT32: pa.float32(), FLOAT64: pa.float64()}


def feature_block(inputs: Sequence[InputSpec], batch: pa.RecordBatch, feature_set: str) -> FeatureBlock:
    """The inputs of a model from the columns of the same names. A value without a row, a stale one and a null
    are null in a joined table. Raises WrongType."""
    columns = [_column(spec, batch.column(spec.name)) for spec in inputs]
    valid = np.stack([column.valid for column in columns])
    # PRESENT where valid, else NULL; a choice by np.where takes a hundred times as long.
    statuses = np.uint8(NULL) - valid.view(np.uint8) * np.uint8(NULL - PRESENT)
    return FeatureBlock(feature_set, tuple(columns), statuses)


def _column(spec: InputSpec, stored: pa.Array) -> FeatureColumn:
    if stored.type == _FLOATS.get(spec.data_type):
        # What `convert` does with a float of the declared type, in one pass: NaN and null are null.
        values = stored.to_numpy(zero_copy_only=False)
        return FeatureColumn(spec.name, spec.data_type, values, values == values)
    array = conversion.convert(stored, spec.data_type, vector_size=spec.vector_size, column=spec.name)
    if array.null_count:
        valid = pc.is_valid(array).to_numpy(zero_copy_only=False)
    else:
        valid = np.ones(len(array), np.bool_)
    return FeatureColumn(spec.name, spec.data_type, _values(spec, array, valid), valid)


def _values(spec: InputSpec, array: pa.Array, valid: Mask) -> Array:
    """[rows], or [rows, size] of vectors; a null has any value."""
    if spec.data_type in VECTORS:
        values = np.zeros((len(array), spec.vector_size), DTYPES[spec.data_type])
        values[valid] = array.flatten().to_numpy(zero_copy_only=False).reshape(-1, spec.vector_size)
        return values
    dtype = DTYPES.get(spec.data_type)
    if dtype is None:
        return np.asarray(array.to_pylist(), dtype=object)
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.int64())
    if array.null_count and not pa.types.is_floating(array.type):
        array = array.fill_null(False if pa.types.is_boolean(array.type) else 0)
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=dtype)
