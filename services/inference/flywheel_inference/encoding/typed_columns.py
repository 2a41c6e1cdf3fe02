"""TODO docstring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flywheel_common import columns
from flywheel_inference.releases.release import FieldSpec
from flywheel_protos.types.v1 import column_pb2, value_pb2

TEXT = value_pb2.DATA_TYPE_STRING


def table(rows: Sequence[tuple[Any, ...]], specs: Sequence[FieldSpec]) -> column_pb2.Table:
    """Values by row → typed columns; None is null."""
    return column_pb2.Table(
        row_count=len(rows),
        columns=[column(spec, [row[place] for row in rows]) for place, spec in enumerate(specs)],
    )


def column(spec: FieldSpec, values: list[Any]) -> column_pb2.Column:
    """One typed column of values in the types of `value.coerce`."""
    kind = spec.data_type
    if kind == TEXT:
        return columns.from_texts(spec.name, values)
    if kind == value_pb2.DATA_TYPE_BYTES:
        return columns.from_blobs(spec.name, values)
    if kind in columns.ELEMENT_OF:
        return columns.from_lists(spec.name, values, kind)
    if kind in columns.VECTORS:
        size = next((len(v) for v in values if v is not None), 1)
        valid = np.array([v is not None for v in values], np.bool_)
        filled = np.array([v if v is not None else [0.0] * size for v in values], columns.DTYPES[kind])
        return columns.from_numpy(spec.name, filled, valid, data_type=kind)
    if None in values:
        valid = np.array([v is not None for v in values], np.bool_)
        filled = np.array([v if v is not None else 0 for v in values], columns.DTYPES[kind])
        return columns.from_numpy(spec.name, filled, valid, data_type=kind)
    return columns.from_numpy(spec.name, np.array(values, columns.DTYPES[kind]), data_type=kind)


def _nulls(name: str, kind: int, valid: Any) -> column_pb2.Column:
    if kind == TEXT:
        return columns.from_texts(name, [None] * len(valid))
    return columns.from_numpy(
        name, np.zeros(len(valid), columns.DTYPES.get(kind, np.dtype("<f8"))), valid, data_type=kind
    )
