"""Encodes values and feature columns as typed protobuf columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flywheel_common import columns
from flywheel_common.scoring.feature_block import FeatureColumn
from flywheel_common.signature import InputSpec
from flywheel_inference.releases.release import FieldSpec
from flywheel_protos.types.v1 import column_pb2, value_pb2

TEXT = value_pb2.DATA_TYPE_STRING


def table(rows: Sequence[tuple[Any, ...]], specs: Sequence[FieldSpec]) -> column_pb2.Table:
    """Rows of values as typed columns; None is null."""
    return column_pb2.Table(
        row_count=len(rows),
        columns=[column(spec, [row[place] for row in rows]) for place, spec in enumerate(specs)],
    )


def column(spec: FieldSpec, values: list[Any]) -> column_pb2.Column:
    """One typed column from values in the Python types of `value.coerce`."""
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


def feature_table(features: Sequence[FeatureColumn], index: Any) -> column_pb2.Table:
    """The rows of feature columns at these indices."""
    return column_pb2.Table(
        row_count=len(index), columns=[_feature_column(feature.take(index)) for feature in features]
    )


def null_inputs(inputs: Sequence[InputSpec], rows: int) -> column_pb2.Table:
    """Columns of nulls for the inputs of a model, for requests whose features were not read."""
    columns_of_nulls = [
        _nulls(spec.name, TEXT if spec.vocabulary else spec.data_type, rows, spec.vector_size)
        for spec in inputs
    ]
    return column_pb2.Table(row_count=rows, columns=columns_of_nulls)


def _feature_column(feature: FeatureColumn) -> column_pb2.Column:
    if feature.data_type in columns.ELEMENT_OF:
        rows = [row if ok else None for row, ok in zip(feature.values, feature.valid.tolist(), strict=True)]
        return columns.from_lists(feature.name, rows, feature.data_type)
    return columns.from_numpy(feature.name, feature.values, feature.valid, data_type=feature.data_type)


def _nulls(name: str, kind: int, rows: int, vector_size: int) -> column_pb2.Column:
    if kind == TEXT:
        return columns.from_texts(name, [None] * rows)
    shape = (rows, vector_size) if vector_size else (rows,)
    zeros = np.zeros(shape, columns.DTYPES.get(kind, np.dtype("<f8")))
    return columns.from_numpy(name, zeros, np.zeros(rows, np.bool_), data_type=kind)
