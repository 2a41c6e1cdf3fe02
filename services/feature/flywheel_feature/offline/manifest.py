"""The description of the files of a training set: hash, row count, times, schema and profiles.

It does not depend on where or how the set was built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl
from pydantic import TypeAdapter

from flywheel_feature.definitions.model import Field
from flywheel_feature.offline.assembly import profiled_fields, set_fields
from flywheel_feature.offline.joins.feature_join import JoinPlan
from flywheel_feature.offline.model import EVENT_TIMESTAMP, LABEL, ColumnProfile, TrainingSetRequest
from flywheel_feature.offline.profile import profile_column, profile_columns
from flywheel_feature.tables.ports import Tables

ROWS_PER_FILE = 250_000


@dataclass(frozen=True, slots=True)
class BuiltFiles:
    """The fields of TrainingSet that describe its files."""

    uri: str
    content_hash: str
    row_count: int
    label_mean: float
    min_time: int
    max_time: int
    schema: tuple[Field, ...]
    profile: tuple[ColumnProfile, ...]
    unlabelled_count: int
    late_events: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> bytes:
        return _BUILT.dump_json(self)

    @classmethod
    def from_json(cls, text: bytes) -> BuiltFiles:
        return _BUILT.validate_json(text)


_BUILT = TypeAdapter(BuiltFiles)


def label_mean(labels: pl.Series | None) -> float:
    """The mean of labels without nulls, 0.0 without labels; summed in row order, so that it never varies."""
    return float(labels.to_numpy().mean()) if labels is not None and len(labels) else 0.0


def of_frame(
    plan: JoinPlan, request: TrainingSetRequest, frame: pl.DataFrame, uri: str, unlabelled: int, digest: str
) -> BuiltFiles:
    """The description of a training set that is in memory; `digest` is its content hash."""
    fields = set_fields(plan, request, frame.columns)
    low, high = frame.select(
        pl.col(EVENT_TIMESTAMP).dt.epoch("us").min().alias("low"),
        pl.col(EVENT_TIMESTAMP).dt.epoch("us").max().alias("high"),
    ).row(0)
    return BuiltFiles(
        uri=uri,
        content_hash=digest,
        row_count=frame.height,
        label_mean=label_mean(frame.get_column(LABEL) if LABEL in frame.columns else None),
        min_time=low or 0,
        max_time=high or 0,
        schema=tuple(fields),
        profile=profile_columns(frame, profiled_fields(plan, request, fields)),
        unlabelled_count=unlabelled,
    )


def profile_files(
    plan: JoinPlan, request: TrainingSetRequest, tables: Tables, uris: Sequence[str], columns: Sequence[str]
) -> tuple[list[Field], list[ColumnProfile], pl.Series | None]:
    """(schema, profiles, labels) of a training set in files, with one column in memory at a time."""
    fields = set_fields(plan, request, columns)
    profile, labels = [], None
    for profiled in profiled_fields(plan, request, fields):
        values = tables.read_files(uris, [profiled.name]).get_column(profiled.name).rechunk()
        profile.append(profile_column(values, profiled.data_type))
        if profiled.name == LABEL:
            labels = values
    return fields, profile, labels
