"""Rows of sources: columns as stored → columns as declared, by the same rules on every path that reads files.

A field is the column of its name, or the one that the source maps to it. A column that a file lacks is the
name of its Hive folder or Delta partition, else null: files written before a column was added are read beside
newer ones. Only the timestamp field and the join keys must be in every file, and every other field in at
least one file of the table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import polars as pl

from flywheel_common.errors import WrongType
from flywheel_feature.definitions.frame_types import converted, converted_text, polars_type
from flywheel_feature.definitions.model import Field, Source
from flywheel_feature.definitions.value_limits import first_outside
from flywheel_feature.tables.errors import SourceMismatch
from flywheel_feature.tables.ports import Between, Footer, Footers, Piece, TableFile

FOOTERS = 64
"""Footers read before it is checked whether more of them are needed."""


def declared_rows(
    source: Source,
    names: Sequence[str],
    frame: pl.DataFrame,
    file: Piece | TableFile | None = None,
    *,
    keys: Collection[str] = (),
    extra: Sequence[str] = (),
) -> pl.DataFrame:
    """The fields `names` as declared, then the columns `extra` as stored.

    `frame` has the columns `columns_of(source, names, file)` of the file; no file: it has the names of the
    fields. `keys` are join keys. Raises FailedPrecondition SOURCE_MISMATCH.
    """
    folders = dict(file.partition) if file is not None else {}
    where = f"{file.uri}: " if file is not None else ""
    stored_names = _stored_names(source, file)
    columns: list[pl.Series] = []
    for name, field in fields_of(source, names):
        stored = stored_names.get(name, name)
        if name != stored and name not in stored_names.values() and name in {*frame.columns, *folders}:
            raise mismatch(
                source, f"{where}there is a column {name!r}, and the field is mapped from column {stored!r}"
            )
        try:
            if stored in frame.columns:
                column = converted(frame, stored, field.data_type, field.vector_size)
                if file is not None and not file.pushed and not source.is_stream:
                    _check_limits(column, field)
            elif stored in folders:
                column = _from_folder(stored, folders[stored], field, frame.height)
            elif name == source.timestamp_field or name in keys:
                raise mismatch(source, f"{where}there is no column {stored!r}")
            else:
                column = _repeated(None, field, frame.height)
        except WrongType as error:
            raise mismatch(source, f"{where}{error.message}") from error
        columns.append(column.alias(name))
    return pl.DataFrame([*columns, *(frame.get_column(n) for n in extra)])


def columns_of(source: Source, names: Sequence[str], file: Piece | TableFile) -> list[str]:
    """The columns of a file to read for these fields, for `declared_rows`."""
    stored = _stored_names(source, file)
    # A mapped field's own name is read as well, to find files in which both columns exist.
    return list(dict.fromkeys([*(stored.get(n, n) for n in names), *names]))


def times_between(
    source: Source, file: Piece | TableFile, low: int | None, high: int | None
) -> Between | None:
    """The filter of a file for rows with low <= event time < high; None without bounds."""
    if low is None and high is None:
        return None
    name = source.timestamp_field
    return Between(_stored_names(source, file).get(name, name), low, high)


def in_range(frame: pl.DataFrame, column: str, low: int | None, high: int | None) -> pl.DataFrame:
    """The rows with low <= column < high (microseconds); rows without a time are left out."""
    time = pl.col(column).dt.epoch("us")
    kept = pl.col(column).is_not_null()
    if low is not None:
        kept = kept & (time >= low)
    if high is not None:
        kept = kept & (time < high)
    return frame.filter(kept)


def check_columns(
    source: Source, names: Sequence[str], known: Collection[str], footers: Footers, uris: Sequence[str]
) -> None:
    """Check that the column of every field is known, or in at least one of the files.

    Reads footers until all fields are found; files that cannot be read are left out.
    Raises FailedPrecondition SOURCE_MISMATCH.
    """
    missing = [stored for n in names if (stored := source.stored_names.get(n, n)) not in known]
    for first in range(0, len(uris), FOOTERS):
        if not missing:
            return
        for footer in footers.footers(uris[first : first + FOOTERS]):
            if isinstance(footer, Footer):
                missing = [name for name in missing if name not in footer.columns]
    if missing:
        raise mismatch(source, f"the files have no column {missing[0]!r}")


def fields_of(source: Source, names: Iterable[str]) -> list[tuple[str, Field]]:
    return [(n, f) for n in names if (f := source.field(n)) is not None]


def _check_limits(column: pl.Series, field: Field) -> None:
    """Raises WrongType. Pushed rows and events were checked when they were sent."""
    found = first_outside(column, field.data_type)
    if found is not None:
        row, reason = found
        value = repr(column[row])[:100]
        raise WrongType(f"Column {column.name!r}, row {row}: {reason} ({value})", column=column.name, row=row)


def _stored_names(source: Source, file: Piece | TableFile | None) -> Mapping[str, str]:
    return {} if file is None or file.pushed else source.stored_names


def mismatch(source: Source, why: str) -> SourceMismatch:
    why = why.rstrip(".")
    return SourceMismatch(f"Source {source.id!r} does not match its schema: {why}.", source=source.name)


def _from_folder(name: str, text: str | None, field: Field, height: int) -> pl.Series:
    if text is None:
        return _repeated(None, field, height).alias(name)
    one = pl.DataFrame({name: pl.Series([text], dtype=pl.String)})
    return converted_text(one, name, field.data_type).new_from_index(0, height)


def _repeated(value: object, field: Field, height: int) -> pl.Series:
    kind = polars_type(field.data_type, field.vector_size)
    return pl.Series([value], dtype=kind).new_from_index(0, height)
