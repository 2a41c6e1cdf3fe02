"""Checks of materialized rows against the limits that encoding.row_checks sets for pushed rows."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from flywheel_feature.definitions.model import DataType, Feature
from flywheel_feature.encoding.errors import ValueOutOfRange
from flywheel_feature.encoding.row_checks import EARLIEST, LATEST, MAXIMUM_VALUE_BYTES
from flywheel_feature.tables.sources import ROW_CREATED_TIME, ROW_EVENT_TIME


def check_frame(frame: pl.DataFrame, features: Sequence[Feature]) -> None:
    """Raises ValueOutOfRange for infinity, a time outside 1642 to 2100, or a value over 256 KiB.

    NaN is accepted: tables hold it for null.
    """
    for name in (ROW_EVENT_TIME, ROW_CREATED_TIME):
        _check_scalars(name, DataType.TIMESTAMP, frame.get_column(name))
    for feature in features:
        series, kind = frame.get_column(feature.name), feature.data_type
        if kind.is_list or kind.is_vector:
            series = series.explode()
        _check_scalars(feature.name, kind.element, series)


def _check_scalars(name: str, kind: DataType, series: pl.Series) -> None:
    why = ""
    if kind in (DataType.FLOAT32, DataType.FLOAT64):
        if series.is_infinite().any():
            why = "infinity is not accepted"
    elif kind == DataType.TIMESTAMP:
        times = series.dt.epoch("us")
        low, high = times.min(), times.max()
        if isinstance(low, int) and isinstance(high, int) and (low < EARLIEST or high > LATEST):
            why = "a time must lie between the years 1642 and 2100"
    elif kind in (DataType.STRING, DataType.BYTES):
        sizes = series.str.len_bytes() if kind == DataType.STRING else series.bin.size()
        longest = sizes.max()
        if isinstance(longest, int) and longest > MAXIMUM_VALUE_BYTES:
            why = f"a value is larger than {MAXIMUM_VALUE_BYTES} bytes"
    if why:
        raise ValueOutOfRange(f"Column {name!r}: {why}.", column=name)
