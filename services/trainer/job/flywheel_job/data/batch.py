"""Batches: columns of a table as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from flywheel_job.errors import UnusableTrainingSet

Batch = dict[str, Any]
"""Column name → tensor `[rows]`, or `[rows, length]` of a list column, or a numpy array of objects (text)."""


def to_batch(table: pa.Table, *, pin: bool = False) -> Batch:
    """The columns of a table; `pin` copies tensors to page-locked memory, from which GPUs copy faster."""
    batch: Batch = {}
    for name in table.column_names:
        values = to_array(name, table[name])
        if values.dtype == object:
            batch[name] = values
        else:
            tensor = torch.from_numpy(values)
            batch[name] = tensor.pin_memory() if pin else tensor
    return batch


def to_array(name: str, column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A writable array; null numbers are NaN, times are microseconds since the epoch.

    Raises UnusableTrainingSet for lists of different lengths, and for nulls in lists.
    """
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _matrix(name, column.combine_chunks())
    if pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us", kind.tz)).cast(pa.int64())
    elif pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return np.array(column.to_pylist(), dtype=object)
    if column.null_count:
        column = column.cast(pa.float64())
    return np.array(column.to_numpy())


def _matrix(name: str, lists: pa.Array) -> npt.NDArray[Any]:
    flat = lists.flatten()
    rows = len(lists)
    width = len(flat) // rows if rows else 0
    lengths = lists.value_lengths().unique().to_pylist()
    if lists.null_count or flat.null_count or (rows and lengths != [width]):
        raise UnusableTrainingSet(f"Column {name!r} has nulls, or lists of different lengths.")
    return np.array(flat.to_numpy(zero_copy_only=False)).reshape(rows, width)
