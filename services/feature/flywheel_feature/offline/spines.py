"""Spines: the rows that features are joined to, from the history of a source or from files of the caller."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from flywheel_feature.definitions.errors import UnknownField, WrongSpine
from flywheel_feature.definitions.frame_types import converted
from flywheel_feature.definitions.model import DataType, Field, Source
from flywheel_feature.expressions.sql import CompiledExpressions, compile_label
from flywheel_feature.offline.joins.feature_join import JoinPlan, typed_spine
from flywheel_feature.offline.model import EVENT_TIMESTAMP, LABEL, FileSpine, SourceSpine, Spine


def spine_fields(plan: JoinPlan) -> list[Field]:
    """The join keys, then the request fields that are not join keys."""
    keys = plan.feature_set.join_keys
    return [*keys, *(f for f in plan.feature_set.request_fields if f.name not in {k.name for k in keys})]


def spine_columns(plan: JoinPlan, spine: Spine) -> list[str]:
    """The columns of a prepared spine, in the order in which it is sorted by them."""
    labelled = spine.label if isinstance(spine, SourceSpine) else spine.label_field
    return [EVENT_TIMESTAMP, *(f.name for f in spine_fields(plan)), *([LABEL] if labelled else [])]


def source_columns(plan: JoinPlan, spine: SourceSpine, source: Source) -> list[str]:
    """The fields of the source that its spine needs."""
    label = _label(spine, source)
    inputs = label.input_columns if label else ()
    names = [f.name for f in spine_fields(plan)]
    return list(dict.fromkeys([*names, spine.timestamp_field, *inputs, source.timestamp_field]))


def file_columns(plan: JoinPlan, spine: FileSpine) -> list[str]:
    """The columns of the files that their spine needs."""
    label = [spine.label_field] if spine.label_field else []
    return [*(f.name for f in spine_fields(plan)), spine.timestamp_field, *label]


def required_columns(plan: JoinPlan, spine: FileSpine) -> list[str]:
    """The columns that each file of a spine must have."""
    return [*(k.name for k in plan.feature_set.join_keys), spine.timestamp_field]


def from_source(plan: JoinPlan, spine: SourceSpine, source: Source, rows: pl.DataFrame) -> pl.DataFrame:
    """The prepared rows of a spine, in the order of `rows`."""
    time = pl.col(spine.timestamp_field)
    rows = rows.filter(time.dt.epoch("us").is_between(spine.start, spine.end, closed="left"))
    frame = rows.select(*(f.name for f in spine_fields(plan)), time.alias(EVENT_TIMESTAMP))
    label = _label(spine, source)
    if label is not None:
        frame = frame.hstack(label.evaluate(rows).rename({label.names[0]: LABEL}))
    return typed_spine(frame, plan).select(spine_columns(plan, spine))


def from_file(plan: JoinPlan, spine: FileSpine, rows: pl.DataFrame) -> pl.DataFrame:
    """The prepared rows of a spine, in the order of `rows`."""
    if rows.get_column(spine.timestamp_field).null_count():
        raise WrongSpine(
            f"Column {spine.timestamp_field!r} of {spine.uri} has nulls: every spine row needs a time."
        )
    time = converted(rows, spine.timestamp_field, DataType.TIMESTAMP)
    label = [pl.col(spine.label_field).cast(pl.Float64).alias(LABEL)] if spine.label_field else []
    frame = rows.select(*(f.name for f in spine_fields(plan)), time.alias(EVENT_TIMESTAMP), *label)
    return typed_spine(frame, plan).select(spine_columns(plan, spine))


def labelled(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows with a label; all rows of a spine without labels."""
    if LABEL not in frame.columns:
        return frame
    return frame.filter(pl.col(LABEL).is_not_null() & pl.col(LABEL).is_not_nan())


def in_order(frame: pl.DataFrame) -> pl.DataFrame:
    """The spine sorted by all columns, so that its order does not depend on how the source was read."""
    return frame.sort(frame.columns)


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
    needed = [
        spine.timestamp_field,
        *(f.name for f in spine_fields(plan)),
        *([spine.label_field] if spine.label_field else []),
    ]
    missing = [name for name in needed if name not in stored]
    if missing:
        raise WrongSpine(
            f"{spine.uri} has no column {missing[0]!r}; it needs: {', '.join(needed)}.", field=missing[0]
        )
    if not isinstance(stored[spine.timestamp_field], (pl.Datetime, pl.Date)):
        raise WrongSpine(f"Column {spine.timestamp_field!r} of {spine.uri} is not a timestamp.")
    if spine.label_field and not (
        stored[spine.label_field].is_numeric() or stored[spine.label_field] == pl.Boolean
    ):
        raise WrongSpine(f"Column {spine.label_field!r} of {spine.uri} is not a number or bool.")
