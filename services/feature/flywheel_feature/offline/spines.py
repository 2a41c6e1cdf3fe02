"""Spines: the rows that features are joined to, from the history of a source or from files of the caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl
import pyarrow as pa

from flywheel_common import conversion
from flywheel_common.errors import WrongType
from flywheel_feature.definitions.errors import UnknownField, WrongSpine
from flywheel_feature.definitions.frame_types import accepts, converted
from flywheel_feature.definitions.model import DataType, Field, Source
from flywheel_feature.expressions.sql import CompiledExpressions, compile_label
from flywheel_feature.offline.joins.feature_join import JoinPlan, typed_spine
from flywheel_feature.offline.model import EVENT_TIMESTAMP, LABEL, FileSpine, SourceSpine, Spine


def spine_fields(plan: JoinPlan) -> list[Field]:
    """The join keys, then the request fields that are not join keys."""
    keys = plan.feature_set.join_keys
    return [*keys, *(f for f in plan.feature_set.request_fields if f.name not in {k.name for k in keys})]


def spine_columns(plan: JoinPlan, spine: Spine) -> list[str]:
    """The columns of a prepared spine; the spine of a source is sorted by them in this order."""
    labelled = spine.label if isinstance(spine, SourceSpine) else spine.label_field
    names = [f.name for f in spine_fields(plan)]
    return [EVENT_TIMESTAMP, *names, *([LABEL] if labelled else []), *(f.name for f in plan.extras)]


def source_columns(plan: JoinPlan, spine: SourceSpine, source: Source) -> list[str]:
    """The fields of the source that its spine needs."""
    label = _label(spine, source)
    inputs = label.input_columns if label else ()
    names = [f.name for f in (*spine_fields(plan), *plan.extras)]
    return list(dict.fromkeys([*names, spine.timestamp_field, *inputs, source.timestamp_field]))


def file_columns(plan: JoinPlan, spine: FileSpine) -> list[str]:
    """The columns of the files that their spine needs."""
    label = [spine.label_field] if spine.label_field else []
    return [*(f.name for f in (*spine_fields(plan), *plan.extras)), *spine.time_columns, *label]


def required_columns(plan: JoinPlan, spine: FileSpine) -> list[str]:
    """The columns that each file of a spine must have."""
    return [*(k.name for k in plan.feature_set.join_keys), *spine.time_columns]


def from_source(plan: JoinPlan, spine: SourceSpine, source: Source, rows: pl.DataFrame) -> pl.DataFrame:
    """The prepared rows of a spine, in the order of `rows`."""
    time = pl.col(spine.timestamp_field)
    rows = rows.filter(time.dt.epoch("us").is_between(spine.start, spine.end, closed="left"))
    names = [f.name for f in (*spine_fields(plan), *plan.extras)]
    frame = rows.select(*names, time.alias(EVENT_TIMESTAMP))
    label = _label(spine, source)
    if label is not None:
        frame = frame.hstack(label.evaluate(rows).rename({label.names[0]: LABEL}))
    return typed_spine(frame, plan).select(spine_columns(plan, spine))


def from_file(plan: JoinPlan, spine: FileSpine, rows: pl.DataFrame) -> pl.DataFrame:
    """The prepared rows of a spine, in the order of `rows`."""
    time = _file_times(spine, rows)
    label = [_file_label(spine, rows)] if spine.label_field else []
    names = [f.name for f in (*spine_fields(plan), *plan.extras)]
    frame = rows.select(*names, time.alias(EVENT_TIMESTAMP), *label)
    return typed_spine(frame, plan).select(spine_columns(plan, spine))


def _file_times(spine: FileSpine, rows: pl.DataFrame) -> pl.Series:
    """The time of each row. Raises WrongSpine."""
    if spine.as_of:
        micros = pl.repeat(spine.as_of, rows.height, dtype=pl.Int64, eager=True)
        return micros.cast(pl.Datetime("us", "UTC"))
    if rows.get_column(spine.timestamp_field).null_count():
        raise WrongSpine(
            f"Column {spine.timestamp_field!r} of {spine.uri} has nulls: every spine row needs a time."
        )
    return converted(rows, spine.timestamp_field, DataType.TIMESTAMP)


def _file_label(spine: FileSpine, rows: pl.DataFrame) -> pl.Series:
    """The labels. Raises WrongSpine, because a file need not have the types of the one that was checked."""
    stored = rows.get_column(spine.label_field)
    if not _is_label(stored.dtype):
        raise WrongSpine(
            f"Column {spine.label_field!r} of {spine.uri} is not a number or bool in every file, but "
            f"{stored.dtype} in one.",
            field=spine.label_field,
        )
    return stored.cast(pl.Float64).alias(LABEL)


def _is_label(stored: pl.DataType) -> bool:
    return stored.is_numeric() or stored in (pl.Boolean, pl.Null)


def labelled(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows with a label; all rows of a spine without labels."""
    if LABEL not in frame.columns:
        return frame
    return frame.filter(pl.col(LABEL).is_not_null() & pl.col(LABEL).is_not_nan())


def in_order(frame: pl.DataFrame) -> pl.DataFrame:
    """The spine of a source sorted by all columns.

    The history of a source has no order of its own: that of its files and events depends on its writers.
    """
    return frame.sort(frame.columns)


def source_extras(spine: SourceSpine, source: Source) -> tuple[Field, ...]:
    """The extra columns of a source's spine. Raises InvalidArgument UNKNOWN_FIELD."""
    found = []
    for name in spine.extra_fields:
        field = source.field(name)
        if field is None:
            raise UnknownField(
                f"extra_fields names {name!r}, which source {source.id!r} does not have.", field=name
            )
        found.append(field)
    return tuple(found)


def file_extras(
    plan: JoinPlan, spine: FileSpine, files: Sequence[Mapping[str, pl.DataType]]
) -> tuple[Field, ...]:
    """The extra columns of files with these stored types: all that have no other use.

    A column may be missing in some files. Raises InvalidArgument WRONG_SPINE.
    """
    stored: dict[str, list[pl.DataType]] = {}
    for file in files:
        for name, kind in file.items():
            stored.setdefault(name, []).append(kind)
    unknown = [name for name in spine.ignored_columns if name not in stored]
    if unknown:
        raise WrongSpine(
            f"ignored_columns names {unknown[0]!r}, which {spine.uri} does not have.", field=unknown[0]
        )
    used = {*(f.name for f in spine_fields(plan)), *spine.time_columns, spine.label_field}
    left_out = {*used, *spine.ignored_columns}
    return tuple(_common(spine, name, kinds) for name, kinds in stored.items() if name not in left_out)


def _common(spine: FileSpine, name: str, stored: Sequence[pl.DataType]) -> Field:
    """An extra column as the data type of all files: FLOAT64 for different numbers, INT64 for nulls only."""
    fields = {_extra_field(spine, name, kind): None for kind in dict.fromkeys(stored) if kind != pl.Null}
    first, *others = fields or (Field(name, DataType.INT64),)
    if not others:
        return first
    if {f.data_type for f in fields} <= {DataType.INT64, DataType.FLOAT32, DataType.FLOAT64}:
        return Field(name, DataType.FLOAT64)
    kinds = " and ".join(str(kind) for kind in dict.fromkeys(stored))
    raise WrongSpine(
        f"Column {name!r} of {spine.uri} is stored as {kinds} in different files: store it as one type, or "
        "name it in ignored_columns.",
        field=name,
    )


def _extra_field(spine: FileSpine, name: str, stored: pl.DataType) -> Field:
    """An extra column with the data type that its stored type becomes."""
    try:
        kind = DataType(conversion.data_type_of(pl.Series([], dtype=stored).to_arrow().type, name))
        if not accepts(stored, kind):
            raise WrongType(f"Column {name!r} holds {stored}, which no data type stores.", column=name)
    except (WrongType, pa.ArrowInvalid) as error:
        raise WrongSpine(
            f"Column {name!r} of {spine.uri} holds {stored}, which no data type stores: store it as another "
            "type, or name it in ignored_columns.",
            field=name,
        ) from error
    return Field(name, kind, stored.size if isinstance(stored, pl.Array) else 0)


def _label(spine: SourceSpine, source: Source) -> CompiledExpressions | None:
    return compile_label(spine.label, {f.name: f.data_type for f in source.schema}) if spine.label else None


def check_source_spine(plan: JoinPlan, spine: SourceSpine, source: Source) -> None:
    """Raises InvalidArgument WRONG_SPINE, UNKNOWN_FIELD or INVALID_EXPRESSION."""
    if not source.timestamp_field:
        raise WrongSpine(f"Source {source.id!r} is a request source: it has no history to read.")
    if spine.start >= spine.end:
        raise WrongSpine("The spine's start_time must be before its end_time.")
    wanted = source.field(spine.timestamp_field)
    if wanted is None or wanted.data_type != DataType.TIMESTAMP:
        raise UnknownField(
            f"timestamp_field {spine.timestamp_field!r} is not a TIMESTAMP field of source {source.id!r}."
        )
    for field in spine_fields(plan):
        if source.field(field.name) is None:
            raise WrongSpine(
                f"Source {source.id!r} has no field {field.name!r}, which {plan.feature_set.name} needs: "
                "add it to the source.",
                field=field.name,
            )
    if spine.label:
        compile_label(spine.label, {f.name: f.data_type for f in source.schema})


def check_file_spine(plan: JoinPlan, spine: FileSpine, stored: Mapping[str, pl.DataType]) -> None:
    """Raises InvalidArgument WRONG_SPINE."""
    if bool(spine.as_of) == bool(spine.timestamp_field):
        raise WrongSpine("A file spine needs either timestamp_field or as_of.")
    needed = [
        *spine.time_columns,
        *(f.name for f in spine_fields(plan)),
        *([spine.label_field] if spine.label_field else []),
    ]
    missing = [name for name in needed if name not in stored]
    if missing:
        raise WrongSpine(
            f"{spine.uri} has no column {missing[0]!r}; it needs: {', '.join(needed)}.", field=missing[0]
        )
    for name in spine.time_columns:
        if not isinstance(stored[name], (pl.Datetime, pl.Date)):
            raise WrongSpine(f"Column {name!r} of {spine.uri} is not a timestamp.")
    if spine.label_field and not _is_label(stored[spine.label_field]):
        raise WrongSpine(f"Column {spine.label_field!r} of {spine.uri} is not a number or bool.")
