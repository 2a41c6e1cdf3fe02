"""Names of the columns of a training set, and names that conflict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flywheel_common.errors import InvalidArgument
from flywheel_feature.definitions.model import DataType, FeatureSet, Field, VersionRef
from flywheel_feature.offline.assembly import check_names, feature_names
from flywheel_feature.offline.joins.feature_join import JoinPlan
from flywheel_feature.offline.model import FileSpine, TrainingSetRequest

LONG = TrainingSetRequest("p", "t", "s", 0, FileSpine("s3://bucket/spine.parquet", "at"))
SHORT = replace(LONG, short_feature_names=True)


def plan(*features: str, keys: tuple[str, ...] = ("origin",), request: tuple[str, ...] = ()) -> JoinPlan:
    """A set of `view:feature`."""
    pairs = [tuple(f.split(":")) for f in features]
    schema = tuple(Field(f"{view}__{name}", DataType.FLOAT64) for view, name in pairs)
    found = FeatureSet(
        "p",
        "s",
        features,
        version=1,
        schema=schema,
        join_keys=tuple(Field(k, DataType.STRING) for k in keys),
        request_fields=tuple(Field(r, DataType.INT64) for r in request),
    )
    outputs = tuple((VersionRef(view, 1), name, f) for (view, name), f in zip(pairs, schema, strict=True))
    return JoinPlan(found, (), (), outputs)


def test_columns_carry_their_view_unless_names_are_short() -> None:
    weather = plan("weather:wind", "traffic:n")
    assert ["weather__wind", "traffic__n"] == feature_names(weather, LONG)
    assert ["wind", "n"] == feature_names(weather, SHORT)
    check_names(weather, LONG)
    check_names(weather, SHORT)


@pytest.mark.parametrize(
    "wrong",
    [
        plan("weather:wind", "airport:wind"),
        plan("weather:origin"),
        plan("weather:distance", request=("distance",)),
        plan("weather:label"),
        plan("weather:event_timestamp"),
    ],
    ids=["another feature", "a key", "a request field", "the label", "the time"],
)
def test_a_short_name_that_is_taken_is_rejected(wrong: JoinPlan) -> None:
    check_names(wrong, LONG)
    with pytest.raises(InvalidArgument, match="short_feature_names") as rejected:
        check_names(wrong, SHORT)
    assert "DUPLICATE_COLUMN" == rejected.value.reason
    assert wrong.outputs[-1][1] == rejected.value.metadata["field"]


@pytest.mark.parametrize("name", ["label", "event_timestamp", "weather__wind"])
@pytest.mark.parametrize("request_", [LONG, SHORT], ids=["long", "short"])
def test_a_join_key_with_a_reserved_column_name_is_rejected(name: str, request_: TrainingSetRequest) -> None:
    with pytest.raises(InvalidArgument) as rejected:
        check_names(plan("weather:wind", keys=(name,)), request_)
    assert "WRONG_SPINE" == rejected.value.reason
