"""The columns of a training set: join keys, event_timestamp, request fields, extras, features, label."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from flywheel_feature.definitions.errors import WrongSpine
from flywheel_feature.definitions.frame_types import TIMESTAMP
from flywheel_feature.definitions.model import DataType, Field
from flywheel_feature.offline.errors import DuplicateColumn
from flywheel_feature.offline.joins.feature_join import JoinPlan
from flywheel_feature.offline.model import EVENT_TIMESTAMP, LABEL, TrainingSetRequest
from flywheel_feature.offline.spines import spine_fields


def feature_names(plan: JoinPlan, request: TrainingSetRequest) -> list[str]:
    """The columns of the features, in the order of the set: `view__feature`, or `feature` as short name."""
    if not request.short_feature_names:
        return [f.name for f in plan.feature_set.schema]
    return [feature for _, feature, _ in plan.outputs]


def check_names(plan: JoinPlan, request: TrainingSetRequest) -> None:
    """Check that all columns of a training set have different names.

    Raises InvalidArgument DUPLICATE_COLUMN when a short name is the name of another column, and WRONG_SPINE
    when a join key or request field has the name of a column that every training set has.
    """
    spine = {f.name for f in (*plan.feature_set.join_keys, *plan.feature_set.request_fields)}
    taken = spine | {EVENT_TIMESTAMP, LABEL} if request.short_feature_names else {EVENT_TIMESTAMP, LABEL}
    for name in feature_names(plan, request):
        if name in taken:
            raise DuplicateColumn(
                f"Two columns of the training set would be called {name!r}: leave short_feature_names out.",
                field=name,
            )
        taken.add(name)
    reserved = {EVENT_TIMESTAMP, LABEL, *(f.name for f in plan.feature_set.schema)}
    for name in sorted(spine & reserved):
        raise WrongSpine(
            f"{name!r} is a join key or request field, and another column of the training set has this name: "
            "rename it.",
            field=name,
        )


def check_extras(plan: JoinPlan, request: TrainingSetRequest) -> None:
    """Raises InvalidArgument DUPLICATE_COLUMN for an extra column with the name of another column."""
    taken = {EVENT_TIMESTAMP, LABEL, *(f.name for f in spine_fields(plan)), *feature_names(plan, request)}
    for extra in plan.extras:
        if extra.name in taken:
            raise DuplicateColumn(
                f"The spine has a column {extra.name!r}, and another column of the training set has this "
                "name: rename it, or leave it out (ignored_columns of a file, extra_fields of a source).",
                field=extra.name,
            )
        taken.add(extra.name)


def assemble(
    plan: JoinPlan, request: TrainingSetRequest, spine: pl.DataFrame, features: pl.DataFrame
) -> pl.DataFrame:
    """The columns of a training set; `features` has one column per feature of the set, in its order."""
    keys = [f.name for f in plan.feature_set.join_keys]
    others = [f.name for f in (*spine_fields(plan), *plan.extras) if f.name not in keys]
    named = features.rename(dict(zip(features.columns, feature_names(plan, request), strict=True)))
    parts = [spine.select(*keys, pl.col(EVENT_TIMESTAMP).cast(TIMESTAMP), *others), named]
    if LABEL in spine.columns:
        parts.append(spine.select(LABEL))
    return pl.concat(parts, how="horizontal")


def set_fields(plan: JoinPlan, request: TrainingSetRequest, columns: Sequence[str]) -> list[Field]:
    """The schema of a training set with these columns."""
    known = {f.name: f for f in (*spine_fields(plan), *plan.extras)}
    for name, f in zip(feature_names(plan, request), plan.feature_set.schema, strict=True):
        known[name] = Field(name, f.data_type, f.vector_size, f.description)
    known[EVENT_TIMESTAMP] = Field(EVENT_TIMESTAMP, DataType.TIMESTAMP)
    known[LABEL] = Field(LABEL, DataType.FLOAT64)
    return [known[name] for name in columns]


def profiled_fields(plan: JoinPlan, request: TrainingSetRequest, fields: Sequence[Field]) -> list[Field]:
    """The fields that have a profile: features and label."""
    names = {LABEL, *feature_names(plan, request)}
    return [f for f in fields if f.name in names]
