"""Arrow tables as Polars frames, also columns of types that Polars lacks."""

from __future__ import annotations

from decimal import Context, Decimal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from flywheel_common.conversion import is_list
from flywheel_common.errors import WrongType

_DIGITS = Context(prec=80)
"""Decimals of 256 bits have up to 76 digits."""


def to_frame(table: pa.Table) -> pl.DataFrame:
    """The rows of a table.

    Polars lacks decimals of 256 bits, views of lists and time zones by offset; they become smaller decimals
    or floats, lists and times in UTC. Dictionaries and extension types become their values.
    Raises WrongType for a decimal of more than 38 digits that would become a whole float, and
    pyarrow.ArrowInvalid for a text that is not UTF-8.
    """
    names = table.column_names
    frame = pl.from_arrow(pa.table([_known(table.column(n), n) for n in names], names=names))
    assert isinstance(frame, pl.DataFrame)
    return frame


def stored_types(schema: pa.Schema) -> dict[str, pl.DataType]:
    """The types of the columns in a frame; of several columns with one name, that of the first."""
    fields: dict[str, pa.Field] = {}
    for field in schema:
        fields.setdefault(field.name, field)
    return dict(to_frame(pa.schema(list(fields.values())).empty_table()).schema)


def has_view(stored: pa.DataType) -> bool:
    """Whether a type is, or contains, a view, which Arrow cannot filter."""
    if pa.types.is_nested(stored):
        is_view = pa.types.is_list_view(stored) or pa.types.is_large_list_view(stored)
        return is_view or any(has_view(stored.field(i).type) for i in range(stored.num_fields))
    return bool(pa.types.is_string_view(stored) or pa.types.is_binary_view(stored))


def _known(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    if not _is_known(column.type):
        one = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        column = pa.chunked_array([_known_array(one, name)])
    # Polars reads the bytes of a text without a check, and invalid ones end the process later.
    if _has_text(column.type):
        column.validate(full=True)
    return column


def _is_known(stored: pa.DataType) -> bool:
    if isinstance(stored, pa.BaseExtensionType) or pa.types.is_dictionary(stored):
        return False
    if pa.types.is_nested(stored):
        is_view = pa.types.is_list_view(stored) or pa.types.is_large_list_view(stored)
        return not is_view and all(_is_known(stored.field(i).type) for i in range(stored.num_fields))
    is_zoned = pa.types.is_timestamp(stored) and stored.tz not in (None, "UTC")
    return not (is_zoned or pa.types.is_decimal256(stored))


def _known_array(array: pa.Array, name: str) -> pa.Array:
    stored = array.type
    if _is_known(stored):
        return array
    if isinstance(array, pa.ExtensionArray):
        return _known_array(array.storage, name)
    if pa.types.is_dictionary(stored):
        return _known_array(array.dictionary_decode(), name)
    if pa.types.is_decimal256(stored):
        return _decimals(array, name)
    if is_list(stored):
        # Arrow's casts of list views use wrong offsets.
        lengths = np.asarray(pc.fill_null(pc.list_value_length(array), 0)).astype(np.int64)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
        flat = _known_array(array.flatten(), name)
        return pa.LargeListArray.from_arrays(offsets, flat, mask=pc.is_null(array))
    if pa.types.is_timestamp(stored):
        return array.cast(pa.timestamp(stored.unit, "UTC"))
    # No data type stores a struct or a map; the text of the value is what an error message needs.
    texts = [None if value is None else str(value) for value in array.to_pylist()]
    return pa.StructArray.from_arrays([pa.array(texts, pa.string())], ["value"], mask=pc.is_null(array))


def _decimals(array: pa.Array, name: str) -> pa.Array:
    """Decimals of 128 bits if all values fit exactly, else the nearest floats."""
    values: list[Decimal | None] = array.to_pylist()
    places = [-v.normalize(_DIGITS).as_tuple().exponent for v in values if v]  # type: ignore[operator]
    try:
        return array.cast(pa.decimal128(38, min(max([0, *places]), 38)))
    except pa.ArrowInvalid:
        floats = [None if v is None else float(v) for v in values]
    for row, (value, nearest) in enumerate(zip(values, floats, strict=True)):
        # A float that is whole would count as an integer.
        if value and nearest and nearest.is_integer() and value != value.to_integral_value(context=_DIGITS):
            raise WrongType(
                f"Column {name!r}, row {row}: {value} (stored as {array.type}) has more than 38 digits.",
                column=name,
                row=row,
                value=str(value),
            )
    return pa.array(floats, pa.float64())


def _has_text(stored: pa.DataType) -> bool:
    if pa.types.is_nested(stored):
        return any(_has_text(stored.field(i).type) for i in range(stored.num_fields))
    return bool(
        pa.types.is_string(stored) or pa.types.is_large_string(stored) or pa.types.is_string_view(stored)
    )
