"""Limits of values besides their types: the same for pushed rows, materialized rows and training sets."""

from __future__ import annotations

import polars as pl

from flywheel_feature.definitions.model import DataType

EARLIEST = -62_135_596_800_000_000 // 6
"""Earliest accepted time in microseconds, about the year 1642."""
LATEST = 4_102_444_800_000_000
"""Latest accepted time in microseconds, 2100-01-01T00:00:00Z: a later event time is a mistake."""
MAXIMUM_VALUE_BYTES = 256 * 1024


def first_outside(series: pl.Series, kind: DataType) -> tuple[int, str] | None:
    """(row, reason) of the first value outside the limits of its data type; None if there is none.

    `series` has the Polars type of the data type. Infinity, a time outside 1642 to 2100 and a text, bytes or
    element of more than 256 KiB are outside; null is not.
    """
    if not _reason(series, kind):
        return None
    for row in range(len(series)):
        reason = _reason(series.slice(row, 1), kind)
        if reason:
            return row, reason
    return None


def _reason(series: pl.Series, kind: DataType) -> str:
    element = kind.element
    values = series.explode() if kind.is_list or kind.is_vector else series
    if element in (DataType.FLOAT32, DataType.FLOAT64) and values.is_infinite().any():
        return "infinity is not accepted"
    if element == DataType.TIMESTAMP:
        times = values.dt.epoch("us")
        low, high = times.min(), times.max()
        if isinstance(low, int) and isinstance(high, int) and (low < EARLIEST or high > LATEST):
            return "a time must lie between the years 1642 and 2100"
    if element in (DataType.STRING, DataType.BYTES):
        longest = (values.str.len_bytes() if element == DataType.STRING else values.bin.size()).max()
        if isinstance(longest, int) and longest > MAXIMUM_VALUE_BYTES:
            return f"a value is larger than {MAXIMUM_VALUE_BYTES} bytes"
    return ""
