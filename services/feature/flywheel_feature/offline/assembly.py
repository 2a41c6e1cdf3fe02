"""The columns of a training set: join keys, event_timestamp, request fields, features, label."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from flywheel_common.errors import InvalidArgument
from flywheel_feature.definitions.frame_types import TIMESTAMP
from flywheel_feature.definitions.model import DataType, Field
from flywheel_feature.offline.joins.feature_join import JoinPlan
from flywheel_feature.offline.model import EVENT_TIMESTAMP, LABEL, TrainingSetRequest
from flywheel_feature.offline.spines import spine_fields


def feature_names(plan: JoinPlan, request: TrainingSetRequest) -> list[str]:
    """Columns of the features, in the set's order: `view__feature`, or `feature` where short names were asked for."""
    if not request.short_feature_names:
        return [f.name for f in plan.feature_set.schema]
    return [feature for _, feature, _ in plan.outputs]


def check_names(plan: JoinPlan, request: TrainingSetRequest) -> None:
    """Raises InvalidArgument DUPLICATE_COLUMN where a short name is that of another column, WRONG_SPINE for a join key or
    request field that is called like a column of every training set."""
    spine = {f.name for f in (*plan.feature_set.join_keys, *plan.feature_set.request_fields)}
    taken = spine | {EVENT_TIMESTAMP, LABEL} if request.short_feature_names else {EVENT_TIMESTAMP, LABEL}
    for name in feature_names(plan, request):
        if name in taken:
            raise InvalidArgument(
                f"Two columns of the training set would be called {name!r}: leave short_feature_names out.",
                reason="DUPLICATE_COLUMN",
                field=name,
            )
        taken.add(name)
    reserved = {EVENT_TIMESTAMP, LABEL, *(f.name for f in plan.feature_set.schema)}
    for name in sorted(spine & reserved):
        raise InvalidArgument(
            f"{name!r} is the name of a join key or request field and of another column of the training set: rename it.",
            reason="WRONG_SPINE",
            field=name,
        )


def assemble(
    plan: JoinPlan, request: TrainingSetRequest, spine: pl.DataFrame, features: pl.DataFrame
) -> pl.DataFrame:
    """`features` has a column per feature of the set, in its order and rows as in `spine`."""
    keys = [f.name for f in plan.feature_set.join_keys]
    others = [f.name for f in spine_fields(plan) if f.name not in keys]
    named = features.rename(dict(zip(features.columns, feature_names(plan, request), strict=True)))
    parts = [spine.select(*keys, pl.col(EVENT_TIMESTAMP).cast(TIMESTAMP), *others), named]
    if LABEL in spine.columns:
        parts.append(spine.select(LABEL))
    return pl.concat(parts, how="horizontal")


def set_fields(plan: JoinPlan, request: TrainingSetRequest, columns: Sequence[str]) -> list[Field]:
    """The schema of a set with these columns."""
    known = {f.name: f for f in spine_fields(plan)}
    for name, f in zip(feature_names(plan, request), plan.feature_set.schema, strict=True):
        known[name] = Field(name, f.data_type, f.vector_size, f.description)
    known[EVENT_TIMESTAMP] = Field(EVENT_TIMESTAMP, DataType.TIMESTAMP)
    known[LABEL] = Field(LABEL, DataType.FLOAT64)
    return [known[name] for name in columns]


def profiled_fields(plan: JoinPlan, request: TrainingSetRequest, fields: Sequence[Field]) -> list[Field]:
    """Features and label: what a profile is kept of."""
    names = {LABEL, *feature_names(plan, request)}
    return [f for f in fields if f.name in names]
