"""Conversion of Arrow columns to the declared data types: exactly, or refused with column, row and value.

One table of rules serves pushes of the SDK, columns of numbers in requests, Parquet and Delta files, folder
names of partitioned tables, and spines; `docs/reference/types.md` is generated from it. Naive times are UTC.
NaN is null. A column without a single value fits every data type. Rounding happens in three documented cases
only: decimals become the nearest float, FLOAT32 is the nearest float of 32 bits, and nanoseconds are cut to
microseconds (towards the past). Needs pyarrow, which the SDK and the feature service install.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flywheel_common.columns import ELEMENT_OF, VECTORS, element_of
from flywheel_common.errors import WrongType
from flywheel_common.value import EXACT_FLOAT_INTEGERS
from flywheel_protos.types.v1 import value_pb2

BOOL = value_pb2.DATA_TYPE_BOOL
INT64 = value_pb2.DATA_TYPE_INT64
FLOAT32 = value_pb2.DATA_TYPE_FLOAT32
FLOAT64 = value_pb2.DATA_TYPE_FLOAT64
STRING = value_pb2.DATA_TYPE_STRING
BYTES = value_pb2.DATA_TYPE_BYTES
TIMESTAMP = value_pb2.DATA_TYPE_TIMESTAMP

ARROW_TYPES: dict[int, pa.DataType] = {
    BOOL: pa.bool_(),
    INT64: pa.int64(),
    FLOAT32: pa.float32(),
    FLOAT64: pa.float64(),
    STRING: pa.large_string(),
    BYTES: pa.large_binary(),
    TIMESTAMP: pa.timestamp("us", "UTC"),
}
"""The Arrow type of each scalar data type after conversion."""

Rule = Callable[[pa.Array, int], tuple[pa.Array, Any]]
"""(array, data type) → (converted array, mask of values that do not fit or None)."""


def arrow_type(data_type: int, vector_size: int = 0) -> pa.DataType:
    """The Arrow type of a column after conversion."""
    element = ARROW_TYPES[element_of(data_type)]
    if data_type in VECTORS:
        return pa.list_(element, vector_size)
    return pa.large_list(element) if data_type in ELEMENT_OF else element


def data_type_of(stored: pa.DataType, column: str) -> int:
    """The data type of a column that is sent without a declared type. Raises WrongType if it has none."""
    stored = _plain_type(stored)
    if pa.types.is_fixed_size_list(stored):
        single = stored.value_type in (pa.float32(), pa.float16())
        return value_pb2.DATA_TYPE_FLOAT32_VECTOR if single else value_pb2.DATA_TYPE_FLOAT64_VECTOR
    if is_list(stored):
        element = data_type_of(stored.value_type, column)
        found = next((k for k, e in ELEMENT_OF.items() if e == element), None)
        if found is None:
            raise WrongType(f"Column {column!r} holds {stored}, which no data type stores.", column=column)
        return found
    if pa.types.is_decimal(stored):
        return INT64 if stored.scale == 0 else FLOAT64
    if pa.types.is_floating(stored):
        return FLOAT64 if pa.types.is_float64(stored) else FLOAT32
    for data_type in (BOOL, INT64, STRING, BYTES, TIMESTAMP):
        if _rule(stored, data_type) is not None:
            return data_type
    raise WrongType(f"Column {column!r} holds {stored}, which no data type stores.", column=column)


def accepts(stored: pa.DataType, data_type: int) -> bool:
    """Whether a stored column may hold values of a data type; its values are checked by `convert`."""
    stored = _plain_type(stored)
    if pa.types.is_null(stored):
        return True
    if data_type in ELEMENT_OF or data_type in VECTORS:
        return is_list(stored) and accepts(stored.value_type, element_of(data_type))
    return _rule(stored, data_type) is not None


def rule_text(stored: pa.DataType, data_type: int) -> str:
    """How a stored scalar type becomes a data type, for the documentation."""
    if pa.types.is_null(stored):
        return "null"
    texts = (text for applies, declared, _, text in _RULES if data_type in declared and applies(stored))
    return next(texts, "refused")


def convert(
    values: pa.Array | pa.ChunkedArray, data_type: int, *, vector_size: int = 0, column: str
) -> pa.Array:
    """The values as `arrow_type(data_type, vector_size)`; NaN is null.

    Raises WrongType, with the metadata column, row (from 0) and value, for the first value that does not
    fit; nulls inside lists and vectors do not fit. `vector_size` 0 takes the size of the first vector.
    """
    array = _plain(values)
    if array.null_count == len(array):
        if data_type in VECTORS and not vector_size:
            vector_size = array.type.list_size if pa.types.is_fixed_size_list(array.type) else 1
        return pa.nulls(len(array), arrow_type(data_type, vector_size))
    if data_type in ELEMENT_OF or data_type in VECTORS:
        return _convert_lists(array, data_type, vector_size, column)
    if pa.types.is_floating(array.type):
        array = _nan_to_null(array)
        if array.null_count == len(array):
            return pa.nulls(len(array), ARROW_TYPES[data_type])
    converted, wrong = _scalars(array, data_type)
    if wrong is not None and wrong.any():
        raise _refused(array, int(np.argmax(wrong)), data_type, column)
    return converted


def from_text(values: pa.Array, data_type: int, *, column: str) -> pa.Array:
    """Folder names of a partitioned table parsed as a data type. Raises WrongType as `convert` does."""
    texts = pc.cast(_plain(values), pa.large_string())
    if data_type == STRING:
        return texts
    parsers: dict[int, Callable[[pa.Array], pa.Array]] = {
        BOOL: lambda t: pc.cast(pc.utf8_lower(t), pa.bool_()),
        INT64: lambda t: pc.cast(t, pa.int64()),
        FLOAT32: lambda t: pc.cast(t, pa.float32()),
        FLOAT64: lambda t: pc.cast(t, pa.float64()),
        TIMESTAMP: _times_from_text,
    }
    parse = parsers.get(data_type)
    row = next((i for i, v in enumerate(texts.to_pylist()) if v is not None), 0)
    if parse is None:
        raise _refused(texts, row, data_type, column)
    try:
        return convert(parse(texts), data_type, column=column)
    except pa.ArrowInvalid:
        for row in np.flatnonzero(np.asarray(texts.is_valid())).tolist():
            try:
                parse(texts.slice(row, 1))
            except pa.ArrowInvalid:
                break
        raise _refused(texts, row, data_type, column) from None


def _times_from_text(texts: pa.Array) -> pa.Array:
    try:
        return pc.cast(texts, pa.timestamp("us", "UTC"))
    except pa.ArrowInvalid:
        return pc.cast(texts, pa.timestamp("us"))


def _scalars(array: pa.Array, data_type: int) -> tuple[pa.Array, Any]:
    """The result of the rule; without a rule, every value is one that does not fit."""
    rule = _rule(array.type, data_type)
    return rule(array, data_type) if rule is not None else (array, np.asarray(array.is_valid()))


def _convert_lists(array: pa.Array, data_type: int, vector_size: int, column: str) -> pa.Array:
    present = np.asarray(array.is_valid())
    if not is_list(array.type):
        raise _refused(array, int(np.argmax(present)), data_type, column)
    lengths = np.asarray(pc.fill_null(pc.list_value_length(array), 0)).astype(np.int64)
    flat = _plain(array.flatten())
    row_of = np.repeat(np.arange(len(array)), lengths)
    if pa.types.is_floating(flat.type):
        flat = _nan_to_null(flat)
    element = element_of(data_type)
    if flat.null_count:
        row = int(row_of[np.argmin(np.asarray(flat.is_valid()))])
        raise _refused(array, row, data_type, column, "a null or NaN inside it")
    if len(flat):
        converted, wrong = _scalars(flat, element)
        if wrong is not None and wrong.any():
            raise _refused(array, int(row_of[np.argmax(wrong)]), data_type, column)
    else:
        converted = pa.array([], ARROW_TYPES[element])
    mask = pa.array(~present) if not present.all() else None
    if data_type not in VECTORS:
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), converted, mask=mask)
    size = vector_size or int(lengths[np.argmax(present)])
    wrong_size = present & ((lengths != size) | (lengths == 0))
    if wrong_size.any():
        row = int(np.argmax(wrong_size))
        raise _refused(
            array, row, data_type, column, f"{lengths[row]} elements instead of {size or 'one or more'}"
        )
    numbers = np.zeros((len(array), size), np.float32 if element == FLOAT32 else np.float64)
    numbers[present] = np.asarray(converted).reshape(-1, size)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(numbers.reshape(-1), ARROW_TYPES[element]), size, mask=mask
    )


def _rule(stored: pa.DataType, data_type: int) -> Rule | None:
    """The rule for a scalar stored type and a scalar data type; None where the pair is refused."""
    for applies, declared, rule, _ in _RULES:
        if data_type in declared and applies(stored):
            return rule
    return None


def _cast(array: pa.Array, data_type: int) -> tuple[pa.Array, Any]:
    wanted = ARROW_TYPES[data_type]
    return (array if array.type == wanted else array.cast(wanted)), None


def _integers(array: pa.Array, data_type: int) -> tuple[pa.Array, Any]:
    """Integers to INT64; unsigned ones of 2^63 and more do not fit."""
    if not pa.types.is_uint64(array.type):
        return _cast(array, data_type)
    wrong = np.asarray(pc.greater(array, pa.scalar(2**63 - 1, pa.uint64())).fill_null(False))
    return array.cast(pa.int64(), safe=False), wrong


def _integers_to_float(array: pa.Array, data_type: int) -> tuple[pa.Array, Any]:
    """Integers that the float type holds exactly."""
    wanted = ARROW_TYPES[data_type]
    floats = array.cast(wanted, safe=False)
    if array.type.bit_width <= (16 if data_type == FLOAT32 else 32):
        return floats, None
    integers = np.asarray(array.fill_null(0))
    back = np.asarray(floats.fill_null(0)).astype(np.float64)
    limit = 2.0**64 if integers.dtype.kind == "u" else 2.0**63
    inside = back < limit
    exact = np.where(inside, back, 0).astype(integers.dtype) == integers
    return floats, ~(exact & inside)


def _whole_floats(array: pa.Array, _: int) -> tuple[pa.Array, Any]:
    numbers = np.asarray(array.fill_null(0)).astype(np.float64)
    wrong = ~((np.abs(numbers) < EXACT_FLOAT_INTEGERS) & (np.floor(numbers) == numbers))
    integers = np.where(wrong, 0, numbers).astype(np.int64)
    return pa.array(integers, mask=~np.asarray(array.is_valid())), wrong


def _floats(array: pa.Array, data_type: int) -> tuple[pa.Array, Any]:
    """Floats to the nearest float of the declared width; finite ones that become infinite do not fit."""
    wanted = ARROW_TYPES[data_type]
    if array.type == wanted:
        return array, None
    converted = array.cast(wanted, safe=False)
    if not (pa.types.is_float64(array.type) and data_type == FLOAT32):
        return converted, None
    before, after = np.asarray(array.fill_null(0)), np.asarray(converted.fill_null(0))
    return converted, np.isfinite(before) & ~np.isfinite(after)


def _decimals_to_integers(array: pa.Array, _: int) -> tuple[pa.Array, Any]:
    integers: list[int | None] = []
    wrong = np.zeros(len(array), np.bool_)
    for i, value in enumerate(array.to_pylist()):
        fits = value is not None and value == value.to_integral_value() and -(2**63) <= value < 2**63
        wrong[i] = value is not None and not fits
        integers.append(int(value) if fits else None)
    return pa.array(integers, pa.int64()), wrong


def _decimals_to_floats(array: pa.Array, data_type: int) -> tuple[pa.Array, Any]:
    # Through Python: float(Decimal) is the nearest float, a cast by Arrow may be off by the last bit.
    floats = pa.array([None if v is None else float(v) for v in array.to_pylist()], pa.float64())
    return _floats(floats, data_type)


def _times(array: pa.Array, _: int) -> tuple[pa.Array, Any]:
    """Timestamps of any unit; naive ones are UTC, nanoseconds are cut towards the past."""
    wanted = ARROW_TYPES[TIMESTAMP]
    if array.type == wanted:
        return array, None
    ticks = np.asarray(array.cast(pa.timestamp(array.type.unit)).cast(pa.int64()).fill_null(0))
    wrong = None
    if array.type.unit == "ns":
        ticks = np.floor_divide(ticks, 1000)
    elif array.type.unit in ("s", "ms"):
        scale = 1_000_000 if array.type.unit == "s" else 1000
        wrong = np.abs(ticks.astype(np.float64)) * scale >= 2.0**63
        ticks = np.where(wrong, 0, ticks) * scale
    return pa.array(ticks, pa.int64(), mask=~np.asarray(array.is_valid())).cast(wanted), wrong


def _dates(array: pa.Array, data_type: int) -> tuple[pa.Array, Any]:
    """Dates as midnight UTC."""
    return _times(array.cast(pa.timestamp("ms")), data_type)


def _is_text(stored: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(stored) or pa.types.is_large_string(stored) or pa.types.is_string_view(stored)
    )


def _is_blob(stored: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(stored)
        or pa.types.is_large_binary(stored)
        or pa.types.is_binary_view(stored)
        or pa.types.is_fixed_size_binary(stored)
    )


def is_list(stored: pa.DataType) -> bool:
    """Whether a type is one of Arrow's five types of lists."""
    return bool(
        pa.types.is_list(stored)
        or pa.types.is_large_list(stored)
        or pa.types.is_fixed_size_list(stored)
        or pa.types.is_list_view(stored)
        or pa.types.is_large_list_view(stored)
    )


_RULES: tuple[tuple[Callable[[pa.DataType], Any], tuple[int, ...], Rule, str], ...] = (
    (pa.types.is_boolean, (BOOL,), _cast, "exact"),
    (pa.types.is_integer, (INT64,), _integers, "exact; 2^63 and more refused"),
    (pa.types.is_integer, (FLOAT32, FLOAT64), _integers_to_float, "if the float is equal"),
    (pa.types.is_floating, (INT64,), _whole_floats, "whole numbers below 2^53"),
    (pa.types.is_floating, (FLOAT32,), _floats, "nearest float; overflow refused"),
    (pa.types.is_floating, (FLOAT64,), _cast, "exact"),
    (pa.types.is_decimal, (INT64,), _decimals_to_integers, "whole numbers that fit"),
    (pa.types.is_decimal, (FLOAT32, FLOAT64), _decimals_to_floats, "nearest float"),
    (_is_text, (STRING,), _cast, "exact"),
    (_is_blob, (BYTES,), _cast, "exact"),
    (pa.types.is_timestamp, (TIMESTAMP,), _times, "exact; ns cut to us"),
    (pa.types.is_date, (TIMESTAMP,), _dates, "midnight UTC"),
)
"""(stored types, declared data types, rule, its description); a pair without a rule is refused."""


def _plain_type(stored: pa.DataType) -> pa.DataType:
    if isinstance(stored, pa.BaseExtensionType):
        stored = stored.storage_type
    if pa.types.is_dictionary(stored) or pa.types.is_run_end_encoded(stored):
        stored = stored.value_type
    return stored


def _plain(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One array without dictionaries, run-length encoding and extension types."""
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if isinstance(array, pa.ChunkedArray):
        # Columns of several chunks of a view type stay chunked.
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    return array


def _nan_to_null(array: pa.Array) -> pa.Array:
    nan = np.isnan(np.asarray(array.fill_null(0)))
    if not nan.any():
        return array
    return pc.if_else(pa.array(nan), pa.scalar(None, array.type), array)


def _refused(array: pa.Array, row: int, data_type: int, column: str, why: str = "") -> WrongType:
    expected = value_pb2.DataType.Name(data_type).removeprefix("DATA_TYPE_")
    try:
        value = repr(array[row].as_py())
    except (ValueError, OverflowError):
        # A year or a nanosecond that a datetime cannot hold.
        value = str(array[row].value)
    value = value if len(value) <= 100 else value[:97] + "..."
    return WrongType(
        f"Column {column!r}, row {row}: {value} (stored as {array.type}) does not fit {expected}"
        f"{': it has ' + why if why else ''}. Correct the value, or declare the type that it has.",
        column=column,
        row=row,
        value=value,
        expected=expected,
    )
