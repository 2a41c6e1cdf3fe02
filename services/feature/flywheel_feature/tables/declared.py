"""Rows of sources: columns as stored → columns as declared, by the same rules on every path that reads files.

A column that a file lacks is the name of its Hive folder or Delta partition, else null: files written before
a column was added are read beside newer ones. Only the timestamp field and the join keys must be in every
file, and every other field in at least one file of the table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import polars as pl

from flywheel_common.errors import WrongType
from flywheel_feature.definitions.frame_types import converted, converted_text, polars_type
from flywheel_feature.definitions.model import Field, Source
from flywheel_feature.tables.errors import SourceMismatch
from flywheel_feature.tables.ports import Footer, Footers

FOOTERS = 64
"""Footers read before it is checked whether more of them are needed."""
Partition = Sequence[tuple[str, str | None]]


def declared_rows(
    source: Source,
    names: Sequence[str],
    frame: pl.DataFrame,
    *,
    file: str = "",
    partition: Partition = (),
    keys: Collection[str] = (),
    extra: Sequence[str] = (),
) -> pl.DataFrame:
    """The fields `names` as declared, then the columns `extra` as stored.

    `file` and `partition` are the address and the folders of the file that `frame` was read from; `keys` are
    join keys. Raises FailedPrecondition SOURCE_MISMATCH.
    """
    folders = dict(partition)
    where = f"{file}: " if file else ""
    columns: list[pl.Series] = []
    for name, field in fields_of(source, names):
        try:
            if name in frame.columns:
                columns.append(converted(frame, name, field.data_type, field.vector_size))
            elif name in folders:
                columns.append(_from_folder(name, folders[name], field, frame.height))
            elif name == source.timestamp_field or name in keys:
                raise mismatch(source, f"{where}there is no column {name!r}")
            else:
                columns.append(_repeated(None, field, frame.height).alias(name))
        except WrongType as error:
            raise mismatch(source, f"{where}{error.message}") from error
    return pl.DataFrame([*columns, *(frame.get_column(n) for n in extra)])


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
    """Check that every field of `names` is known, or a column of at least one of the files.

    Reads footers until all fields are found; files that cannot be read are left out.
    Raises FailedPrecondition SOURCE_MISMATCH.
    """
    missing = [name for name in names if name not in known]
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
