"""Column profiles: the distributions of the columns of a training set, used as drift reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from flywheel_common.arrays import Floats
from flywheel_common.projections import PROJECTIONS, project
from flywheel_feature.definitions.model import DataType, Field
from flywheel_feature.offline.model import ColumnProfile

BINS = 128
CATEGORIES = 100


def profile_columns(frame: pl.DataFrame, fields: Sequence[Field]) -> tuple[ColumnProfile, ...]:
    """One profile per field. NaN counts as null; lists, bytes and timestamps are only counted."""
    return tuple(profile_column(frame.get_column(f.name), f.data_type) for f in fields)


def profile_column(values: pl.Series, data_type: DataType) -> ColumnProfile:
    """The profile of one column (see `profile_columns`)."""
    if data_type in (DataType.INT64, DataType.FLOAT32, DataType.FLOAT64):
        return _numeric(values, data_type)
    if data_type in (DataType.STRING, DataType.BOOL):
        return _categorical(values, data_type)
    if data_type.is_vector:
        return _vector(values, data_type)
    return ColumnProfile(values.name, data_type, len(values), values.null_count())


def inner_edges(ordered: Floats) -> Floats:
    """At most BINS - 1 strictly increasing edges of sorted finite values.

    They are the values at ranks ceil(n i / BINS). The maximum is not an edge, as no value is above it.
    """
    if ordered.size == 0:
        return np.zeros(0)
    ranks = -(-ordered.size * np.arange(1, BINS) // BINS) - 1
    edges: Floats = np.unique(ordered[ranks])
    inner: Floats = edges[edges < ordered[-1]]
    return inner


def _numeric(values: pl.Series, data_type: DataType) -> ColumnProfile:
    numbers = values.cast(pl.Float64).drop_nulls().drop_nans().to_numpy()
    finite = np.sort(numbers[np.isfinite(numbers)])
    edges = inner_edges(finite)
    counts = np.bincount(np.searchsorted(edges, numbers, side="left"), minlength=edges.size + 1)
    present = finite.size > 0
    return ColumnProfile(
        name=values.name,
        data_type=data_type,
        count=len(values),
        null_count=len(values) - numbers.size,
        mean=float(finite.mean()) if present else 0.0,
        stddev=float(finite.std()) if present else 0.0,
        min=float(finite[0]) if present else 0.0,
        max=float(finite[-1]) if present else 0.0,
        edges=tuple(edges.tolist()),
        bin_counts=tuple(counts.tolist()),
    )


def _vector(values: pl.Series, data_type: DataType) -> ColumnProfile:
    """The profiles of the projections (`flywheel_common.projections`); their seed is the column's name."""
    present = values.drop_nulls()
    if present.is_empty():
        return ColumnProfile(values.name, data_type, len(values), values.null_count())
    if isinstance(present.dtype, pl.List):  # As Parquet files of other writers have them.
        present = present.list.to_array(len(present[0]))
    vectors = np.asarray(present.to_numpy())
    projected = np.full((len(values), PROJECTIONS), np.nan)
    projected[: len(vectors)] = project(vectors, values.name)
    return ColumnProfile(
        name=values.name,
        data_type=data_type,
        count=len(values),
        null_count=int(np.isnan(projected).any(axis=1).sum()),
        vector_size=vectors.shape[1],
        projections=tuple(_numeric(pl.Series(values.name, x), DataType.FLOAT64) for x in projected.T),
    )


def _categorical(values: pl.Series, data_type: DataType) -> ColumnProfile:
    """Categories by descending count, ties by text."""
    counted = (
        pl.DataFrame({"value": values.cast(pl.String)})
        .drop_nulls()
        .group_by("value")
        .len()
        .sort(["len", "value"], descending=[True, False])
    )
    top = counted.head(CATEGORIES)
    return ColumnProfile(
        name=values.name,
        data_type=data_type,
        count=len(values),
        null_count=values.null_count(),
        categories=tuple(top["value"].to_list()),
        category_counts=tuple(top["len"].to_list()),
        other_count=sum(counted["len"].to_list()[CATEGORIES:]),
    )
