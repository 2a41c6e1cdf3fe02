"""Arrow tables as Polars frames, also columns of types that Polars lacks."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from flywheel_common.conversion import is_list, narrowed


def to_frame(table: pa.Table) -> pl.DataFrame:
    """The rows of a table; values of types that Polars lacks get an equal type (see `_known_type`).

    Raises WrongType for a decimal with more than 38 digits, and pyarrow.ArrowInvalid for a text that is not
    UTF-8.
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


def _known(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    wanted = _known_type(column.type)
    if wanted != column.type:
        column = pa.chunked_array([_known_array(chunk, name) for chunk in column.chunks], wanted)
    # Polars reads the bytes of a text without a check, and invalid ones end the process later.
    if _has_text(wanted):
        column.validate(full=True)
    return column


def _known_type(stored: pa.DataType) -> pa.DataType:
    """The type of equal values that Polars has.

    Polars lacks decimals of 256 bits, views of lists and time zones by offset; dictionaries and extension
    types count as the type of their values.
    """
    if isinstance(stored, pa.BaseExtensionType):
        return _known_type(stored.storage_type)
    if pa.types.is_dictionary(stored):
        return _known_type(stored.value_type)
    if pa.types.is_decimal256(stored):
        return pa.decimal128(38, min(stored.scale, 38))
    if pa.types.is_timestamp(stored) and stored.tz is not None:
        return pa.timestamp(stored.unit, "UTC")
    if is_list(stored):
        inner = _known_type(stored.value_type)
        is_view = pa.types.is_list_view(stored) or pa.types.is_large_list_view(stored)
        return pa.large_list(inner) if is_view or inner != stored.value_type else stored
    if pa.types.is_struct(stored):
        fields = [f.with_type(_known_type(f.type)) for f in stored]
        return pa.struct(fields)
    if pa.types.is_map(stored):
        return pa.map_(_known_type(stored.key_type), _known_type(stored.item_type))
    return stored


def _known_array(array: pa.Array, name: str) -> pa.Array:
    wanted = _known_type(array.type)
    if wanted == array.type:
        return array
    if isinstance(array, pa.ExtensionArray):
        return _known_array(array.storage, name)
    if pa.types.is_dictionary(array.type):
        return _known_array(array.dictionary_decode(), name)
    if pa.types.is_decimal256(array.type):
        return narrowed(array, name)
    if is_list(array.type):
        # Arrow's casts of list views use wrong offsets.
        lengths = np.asarray(pc.fill_null(pc.list_value_length(array), 0)).astype(np.int64)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
        flat = _known_array(array.flatten(), name)
        return pa.LargeListArray.from_arrays(offsets, flat, mask=pc.is_null(array))
    return array.cast(wanted)


def _has_text(stored: pa.DataType) -> bool:
    if pa.types.is_nested(stored):
        return any(_has_text(stored.field(i).type) for i in range(stored.num_fields))
    return bool(
        pa.types.is_string(stored) or pa.types.is_large_string(stored) or pa.types.is_string_view(stored)
    )
