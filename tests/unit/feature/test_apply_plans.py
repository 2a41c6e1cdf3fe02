"""Plans of an apply: versions for definitions, updates for metadata, violations for mistakes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flywheel_common.errors import FailedPrecondition, InvalidArgument
from flywheel_feature.apply.plan import Action, Declared
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import (
    HOUR,
    Aggregation,
    AggregationFunction,
    BatchView,
    DataType,
    Expression,
    Feature,
    Field,
    Metadata,
    OnDemandView,
    ParquetSource,
    RequestSource,
    Source,
    StreamSource,
    StreamView,
    TableFormat,
    VersionRef,
    View,
)
from tests.support.builders.apply_example import (
    EVERYTHING,
    P,
    actions,
    age,
    applied,
    example_catalog,
    facts,
    landings,
    late,
    plan,
    plane,
    planes,
    recent,
)


@pytest.fixture
def catalog() -> Catalog:
    return example_catalog()


def test_a_first_apply_resolves_types_names_tiles_and_inputs(catalog: Catalog) -> None:
    view = catalog.view("recent")
    assert [(f.name, f.data_type) for f in view.features] == [("mean_delay_3h", DataType.FLOAT64)]
    assert isinstance(view.kind, StreamView) and view.kind.tile == 900 * 1_000_000
    bound = catalog.feature_set("late")
    assert bound.features == ("facts:built", "recent:mean_delay_3h", "age:years")
    assert [f.name for f in bound.join_keys] == ["tailnum"]
    assert [f.name for f in bound.request_fields] == ["distance"]
    assert [f.name for f in bound.schema] == ["facts__built", "recent__mean_delay_3h", "age__years"]
    assert catalog.view("age").inputs == (VersionRef("facts", 1),)


def test_applying_the_same_again_changes_nothing(catalog: Catalog) -> None:
    assert actions(plan(catalog, EVERYTHING)) == {}


def test_metadata_updates_in_place_and_definitions_make_versions(catalog: Catalog) -> None:
    described = replace(facts, metadata=Metadata("Built when"))
    assert actions(plan(catalog, Declared(views=(described,)))) == {"views/facts/versions/1": Action.UPDATE}
    longer = replace(facts, ttl=HOUR)
    made = plan(catalog, Declared(views=(longer,)))
    assert actions(made) == {"views/facts/versions/2": Action.NEW_VERSION}
    assert made.changes[0].readers == (
        "projects/default/featureSets/late/versions/1",
        "projects/default/views/age/versions/1",
    )
    assert "ttl: 0 -> 3600000000" in made.changes[0].differences


def test_a_feature_set_keeps_its_view_versions_until_applied_again(catalog: Catalog) -> None:
    changed = applied(catalog, plan(catalog, Declared(views=(replace(facts, ttl=HOUR),))))
    assert changed.feature_set("late").views[0] == VersionRef("facts", 1)
    assert {v.name.rpartition("views/")[2] for v in changed.live_views()} >= {
        "facts/versions/1",
        "facts/versions/2",
    }
    again = applied(changed, plan(changed, Declared(views=(age,), feature_sets=(late,))))
    assert again.feature_set("late").version == 2
    assert again.feature_set("late").views[0] == VersionRef("facts", 2)
    assert again.view("age").inputs == (VersionRef("facts", 2),)


@pytest.mark.parametrize(
    ("declared", "reason", "path"),
    [
        (Declared(views=(replace(facts, entity="ghost"),)), "UNKNOWN_REFERENCE", "entity"),
        (Declared(views=(replace(facts, kind=BatchView("ghost", ())),)), "UNKNOWN_REFERENCE", "batch.source"),
        (
            Declared(feature_sets=(replace(late, features=("facts:ghost",)),)),
            "UNKNOWN_REFERENCE",
            "features[0]",
        ),
        (Declared(entities=(replace(plane, join_keys=()),)), "INVALID_DEFINITION", "join_keys"),
        (
            Declared(
                sources=(replace(planes, kind=ParquetSource("s3://bucket/planes/", TableFormat.ICEBERG)),)
            ),
            "INVALID_DEFINITION",
            "parquet.format",
        ),
        *(
            (
                Declared(sources=(replace(planes, kind=ParquetSource(uri)),)),
                "INVALID_DEFINITION",
                "parquet.uri",
            )
            for uri in ("/data/planes", "s3://bucket/", "s3://bucket//", "s3://bucket/a/../b")
        ),
        *(
            (
                Declared(
                    sources=(replace(planes, kind=ParquetSource("s3://bucket/planes", columns=columns)),)
                ),
                reason,
                path,
            )
            for columns, reason, path in (
                ({"Built In": "ghost"}, "UNKNOWN_REFERENCE", "parquet.columns['Built In']"),
                ({"A": "built", "B": "built"}, "INVALID_DEFINITION", "parquet.columns['B']"),
                ({"built": "tailnum"}, "INVALID_DEFINITION", "parquet.columns['built']"),
                ({"": "built"}, "INVALID_DEFINITION", "parquet.columns['']"),
            )
        ),
        (
            Declared(
                views=(
                    replace(
                        recent,
                        kind=StreamView(
                            "landings", (Aggregation("m", AggregationFunction.SUM, "tailnum", HOUR),)
                        ),
                    ),
                )
            ),
            "INVALID_DEFINITION",
            "stream.aggregations[0].field",
        ),
        (
            Declared(
                views=(
                    replace(
                        recent,
                        kind=StreamView("landings", (Aggregation("m", AggregationFunction.COUNT, "", 1),)),
                    ),
                )
            ),
            "INVALID_DEFINITION",
            "stream.aggregations[0].window",
        ),
        (
            Declared(
                views=(
                    replace(
                        age,
                        kind=OnDemandView(
                            ("facts",), (), (Expression(Feature("y", DataType.FLOAT64), "1 +"),)
                        ),
                    ),
                )
            ),
            "INVALID_DEFINITION",
            "on_demand.expressions[0].sql",
        ),
    ],
)
def test_a_violation_names_the_object_and_the_field(
    catalog: Catalog, declared: Declared, reason: str, path: str
) -> None:
    made = plan(catalog, declared)
    assert path in [v.field for v in made.violations]
    with pytest.raises(InvalidArgument) as raised:
        made.raise_violations()
    assert raised.value.reason == reason


def test_a_source_may_become_a_delta_table(catalog: Catalog) -> None:
    moved = replace(planes, kind=ParquetSource("s3://lake/planes/", TableFormat.DELTA))
    assert actions(plan(catalog, Declared(sources=(moved,)))) == {"sources/planes": Action.UPDATE}


events = Source(
    P,
    "events",
    (
        Field("tailnum", DataType.STRING),
        Field("at", DataType.TIMESTAMP),
        Field("raw", DataType.BYTES),
        Field("on", DataType.BOOL),
        Field("tags", DataType.STRING_LIST),
        Field("x", DataType.INT64),
    ),
    "at",
    "",
    StreamSource(),
)


@pytest.mark.parametrize(
    ("function", "field", "kind"),
    [
        (AggregationFunction.COUNT, "tags", DataType.INT64),
        (AggregationFunction.APPROX_DISTINCT, "raw", DataType.INT64),
        (AggregationFunction.LAST, "tailnum", DataType.STRING),
        (AggregationFunction.LAST, "raw", DataType.BYTES),
        (AggregationFunction.LAST_N, "tailnum", DataType.STRING_LIST),
        (AggregationFunction.LAST_N, "at", DataType.TIMESTAMP_LIST),
        (AggregationFunction.FIRST, "on", DataType.BOOL),
        (AggregationFunction.FIRST, "at", DataType.TIMESTAMP),
        (AggregationFunction.LAST, "x", DataType.INT64),
        (AggregationFunction.LAST_N, "x", DataType.INT64_LIST),
        (AggregationFunction.MAX, "x", DataType.FLOAT64),
        (AggregationFunction.MEAN, "on", DataType.FLOAT64),
    ],
)
def test_an_aggregation_has_the_type_of_its_result(
    function: AggregationFunction, field: str, kind: DataType
) -> None:
    view = View(P, "v", "plane", StreamView("events", (Aggregation("f", function, field, HOUR, 3),)))
    made = plan(Catalog(P), Declared((plane,), (events,), (view,)))
    assert made.violations == []
    (resolved,) = [c.definition for c in made.changes if isinstance(c.definition, View)]
    assert [f.data_type for f in resolved.features] == [kind]


@pytest.mark.parametrize(
    ("function", "field", "text"),
    [
        (AggregationFunction.FIRST, "tailnum", "FIRST takes BOOL, INT64, FLOAT32, FLOAT64, TIMESTAMP"),
        (AggregationFunction.LAST_N, "raw", "'raw' is BYTES"),
        (AggregationFunction.APPROX_DISTINCT, "tags", "'tags' is STRING_LIST"),
        (AggregationFunction.MAX, "at", "'at' is TIMESTAMP"),
    ],
)
def test_a_field_type_that_a_function_rejects_is_a_violation(
    function: AggregationFunction, field: str, text: str
) -> None:
    view = View(P, "v", "plane", StreamView("events", (Aggregation("f", function, field, HOUR, 3),)))
    (violation,) = plan(Catalog(P), Declared((plane,), (events,), (view,))).violations
    assert text in violation.message and violation.field == "stream.aggregations[0].field"


def test_approx_distinct_is_limited_to_256_tiles() -> None:
    wide = Aggregation("d", AggregationFunction.APPROX_DISTINCT, "x", 90 * 24 * HOUR)
    view = View(P, "v", "plane", StreamView("events", (wide,), "", HOUR))
    (violation,) = plan(Catalog(P), Declared((plane,), (events,), (view,))).violations
    assert "2160 tiles, more than 256" in violation.message


def test_fields_of_a_source_with_readers_cannot_be_removed(catalog: Catalog) -> None:
    narrower = replace(landings, schema=landings.schema[:2])
    assert [v.field for v in plan(catalog, Declared(sources=(narrower,))).violations] == ["schema"]
    wider = replace(landings, schema=(*landings.schema, Field("gate", DataType.STRING)))
    assert actions(plan(catalog, Declared(sources=(wider,)))) == {"sources/landings": Action.UPDATE}


def test_a_view_is_deleted_only_together_with_its_readers(catalog: Catalog) -> None:
    with pytest.raises(FailedPrecondition) as raised:
        plan(catalog, Declared(), "projects/default/views/facts")
    assert raised.value.reason == "IN_USE"
    names = [f"projects/default/{n}" for n in ("views/facts", "views/age", "featureSets/late")]
    assert set(actions(plan(catalog, Declared(), *names)).values()) == {Action.DELETE}


@pytest.mark.parametrize(("sent", "expected"), [(DataType.INT64, 1), (DataType.STRING, 0)])
def test_a_key_and_a_request_field_of_one_name_have_one_type(sent: DataType, expected: int) -> None:
    trip = Source(P, "trip", (Field("tailnum", sent),), "", "", RequestSource())
    length = Expression(Feature("years", DataType.FLOAT64), "2013 - facts__built")
    age = View(P, "age", "", OnDemandView(("facts",), ("trip",), (length,)))
    made = plan(Catalog(P), replace(EVERYTHING, sources=(planes, landings, trip), views=(age, facts, recent)))
    found = [v.message for v in made.violations if "join key of type STRING" in v.message]
    assert len(found) == expected
    assert all("request field of type INT64" in message for message in found)
