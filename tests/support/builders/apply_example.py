"""An example project for tests of apply: a batch, a stream and an on-demand view, and a feature set."""

from __future__ import annotations

from datetime import UTC, datetime

from flywheel_feature.apply.plan import Action, ApplyPlan, Declared, make_plan
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import (
    HOUR,
    Aggregation,
    AggregationFunction,
    BatchView,
    DataType,
    Entity,
    Expression,
    Feature,
    FeatureSet,
    Field,
    OnDemandView,
    ParquetSource,
    RequestSource,
    Source,
    StreamSource,
    StreamView,
    VersionRef,
    View,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
P = "default"
plane = Entity(P, "plane", (Field("tailnum", DataType.STRING),))
planes = Source(
    P,
    "planes",
    (Field("tailnum", DataType.STRING), Field("at", DataType.TIMESTAMP), Field("built", DataType.FLOAT64)),
    "at",
    "",
    ParquetSource("s3://bucket/planes/"),
)
landings = Source(
    P,
    "landings",
    (Field("tailnum", DataType.STRING), Field("at", DataType.TIMESTAMP), Field("delay", DataType.FLOAT64)),
    "at",
    "",
    StreamSource(),
)
trip = Source(P, "trip", (Field("distance", DataType.FLOAT64),), "", "", RequestSource())
facts = View(P, "facts", "plane", BatchView("planes", (Feature("built", DataType.FLOAT64),)))
recent = View(
    P,
    "recent",
    "plane",
    StreamView("landings", (Aggregation("", AggregationFunction.MEAN, "delay", 3 * HOUR),)),
)
age = View(
    P,
    "age",
    "",
    OnDemandView(
        ("facts",), ("trip",), (Expression(Feature("years", DataType.FLOAT64), "2013 - facts__built"),)
    ),
)
late = FeatureSet(P, "late", ("facts:built", "recent:*", "age:years"))
EVERYTHING = Declared((plane,), (planes, landings, trip), (age, facts, recent), (late,))


def applied(catalog: Catalog, plan: ApplyPlan) -> Catalog:
    """The catalog of the project after a plan is carried out."""
    assert not plan.violations
    entities, sources = dict(catalog.entities), dict(catalog.sources)
    views, sets = dict(catalog.views), dict(catalog.feature_sets)
    latest, latest_sets = dict(catalog.latest_views), dict(catalog.latest_feature_sets)
    for change in plan.changes:
        match change.definition:
            case Entity() as e:
                entities[e.id] = e
            case Source() as s:
                sources[s.id] = s
            case View() as v:
                views[VersionRef(v.id, v.version)] = latest[v.id] = v
            case FeatureSet() as f:
                sets[VersionRef(f.id, f.version)] = latest_sets[f.id] = f
    return Catalog(P, catalog.revision + 1, entities, sources, views, sets, latest, latest_sets)


def plan(catalog: Catalog, declared: Declared, *deletes: str) -> ApplyPlan:
    """The plan of an apply that also deletes these names."""
    return make_plan(catalog, declared, list(deletes), NOW)


def actions(made: ApplyPlan) -> dict[str, Action]:
    """Name below the project → action, without unchanged definitions."""
    return {
        c.name.partition(f"projects/{P}/")[2]: c.action
        for c in made.changes
        if c.action is not Action.UNCHANGED
    }


def example_catalog() -> Catalog:
    """The project after a first apply of EVERYTHING."""
    return applied(Catalog(P), plan(Catalog(P), EVERYTHING))
