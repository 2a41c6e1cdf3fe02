"""Checks of rows that callers send: every field present, of its type and in range.

A failed check refuses all rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel_common.errors import WrongType
from flywheel_feature.definitions.model import DataType, Field
from flywheel_feature.definitions.value_limits import EARLIEST, LATEST, MAXIMUM_VALUE_BYTES
from flywheel_feature.encoding.errors import PartialRow, ValueOutOfRange
from flywheel_feature.encoding.frames import Columns
from flywheel_feature.encoding.row_encoding import DTYPES


def wrong_type(field: Field, given: str) -> WrongType:
    """The error for a column whose values are `given` instead of the declared type."""
    return WrongType(f"Column {field.name!r} must be {field.data_type.name}, not {given}.", column=field.name)


def check_values(field: Field, values: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> None:
    """Raises ValueOutOfRange for NaN, infinity, a time outside 1642 to 2100, or a value over 256 KiB."""
    element = field.data_type.element
    if element in (DataType.FLOAT32, DataType.FLOAT64):
        flat = _flat(values, valid)
        if flat.size and not np.isfinite(flat).all():
            raise _out_of_range(field, "NaN and infinity are not accepted: send null instead")
    elif element == DataType.TIMESTAMP:
        flat = _flat(values, valid)
        if flat.size and (flat.min() < EARLIEST or flat.max() > LATEST):
            raise _out_of_range(field, "a time must lie between the years 1642 and 2100")
    elif values.dtype == object:
        for v in values[valid]:
            if len(v) > MAXIMUM_VALUE_BYTES:
                raise _out_of_range(field, f"a value is larger than {MAXIMUM_VALUE_BYTES} bytes")


def _flat(values: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    present = values[valid]
    if present.dtype == object:
        return np.concatenate(list(present)) if len(present) else np.zeros(0)
    return present


def _out_of_range(field: Field, why: str) -> ValueOutOfRange:
    return ValueOutOfRange(f"Column {field.name!r}: {why}.", column=field.name)


def required(columns: Columns, fields: Sequence[str], why: str) -> None:
    """Raises PartialRow when one of these fields is null in any row."""
    for name in fields:
        if name and not columns[name][1].all():
            raise PartialRow(f"Column {name!r} has a null: {why}.", column=name)


def row_ids(fields: Sequence[Field], columns: Columns, rows: int) -> list[str]:
    """An id per row that depends only on its content: 32 hexadecimal digits of BLAKE2b."""
    hashes = [hashlib.blake2b(digest_size=16) for _ in range(rows)]
    for field in fields:
        values, valid = columns[field.name]
        fixed = values.dtype != object
        data = (
            np.ascontiguousarray(values).astype(DTYPES[field.data_type.element], copy=False)
            if fixed
            else values
        )
        for i, h in enumerate(hashes):
            if not valid[i]:
                h.update(b"\0")
                continue
            raw = data[i].tobytes() if fixed else _bytes(data[i])
            h.update(b"\1" + len(raw).to_bytes(4, "little") + raw)
    return [h.hexdigest() for h in hashes]


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.tobytes()
    return b"".join(len(p).to_bytes(4, "little") + p for p in (_bytes(str(v)) for v in value))
