"""Ids of pushed events: given, from a column, or made from a request id.

The service counts events with one id once. Without ids it takes a hash of the row as id, so two equal rows
count as one event.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from flywheel_common.errors import InvalidColumn, WrongType

AUTO = "auto"


def event_ids(rows: pa.Table, ids: str | Sequence[str], request_id: str) -> list[str]:
    """One id per row, or none.

    `ids`: the ids; or the name of a column of texts or integers; or "auto": the request id and the place of
    the row, so that equal rows are different events and a retry with the same request id sends the same ids.
    Raises InvalidColumn for an unknown column or a null in it, WrongType for a column of another type.
    """
    if not isinstance(ids, str):
        return list(ids)
    if ids == AUTO:
        return [f"{request_id}-{row}" for row in range(rows.num_rows)]
    if ids not in rows.column_names:
        raise InvalidColumn(
            f"The rows have no column {ids!r} for ids; they have: {', '.join(rows.column_names)}.", column=ids
        )
    column = rows.column(ids)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise WrongType(f"Column {ids!r} is {kind}, but ids are texts or integers.", column=ids)
    if column.null_count:
        raise InvalidColumn(f"Column {ids!r} has a null, but every event needs an id.", column=ids)
    return [str(value) for value in column.to_pylist()]
