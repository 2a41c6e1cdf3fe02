"""Properties of apply plans for random definitions and random changes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_feature.apply.plan import Action, ApplyPlan, Declared
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import (
    HOUR,
    Aggregation,
    AggregationFunction,
    BatchView,
    DataType,
    Feature,
    FeatureSet,
    Metadata,
    StreamView,
    ValidationRule,
    View,
)
from tests.support.builders.apply_example import (
    EVERYTHING,
    P,
    age,
    applied,
    facts,
    plan,
    recent,
)

TEXTS = st.text("abc ", max_size=4)
METADATA = st.builds(
    Metadata, TEXTS, TEXTS, st.dictionaries(st.sampled_from(["team", "tier"]), TEXTS, max_size=2)
)
AGGREGATIONS = st.lists(
    st.builds(
        Aggregation,
        st.just(""),
        st.sampled_from(
            [AggregationFunction.MEAN, AggregationFunction.APPROX_DISTINCT, AggregationFunction.LAST]
        ),
        st.just("delay"),
        st.sampled_from([HOUR, 3 * HOUR]),
        st.just(0),
        TEXTS,
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda a: (a.function, a.window),
)
RULES = st.lists(st.builds(ValidationRule, min=st.integers(0, 3).map(float)), max_size=2).map(tuple)


@st.composite
def declarations(draw: Any) -> Declared:
    """Variants of the example: other metadata, descriptions, rules, TTLs and aggregations."""
    built = Feature("built", DataType.FLOAT64, description=draw(TEXTS), rules=draw(RULES))
    views: list[View] = [
        replace(
            facts,
            kind=BatchView("planes", (built,)),
            ttl=draw(st.sampled_from([0, HOUR])),
            metadata=draw(METADATA),
        ),
        replace(
            recent,
            kind=StreamView("landings", tuple(draw(AGGREGATIONS))),
            freshness_sla=draw(st.sampled_from([0, HOUR])),
            metadata=draw(METADATA),
        ),
        replace(age, metadata=draw(METADATA)),
    ]
    sets = (FeatureSet(P, "late", ("facts:built", "recent:*", "age:years"), draw(METADATA)),)
    entities = tuple(replace(e, metadata=draw(METADATA)) for e in EVERYTHING.entities)
    sources = tuple(replace(s, metadata=draw(METADATA)) for s in EVERYTHING.sources)
    return Declared(entities, sources, tuple(draw(st.permutations(views))), sets)


def with_metadata(declared: Declared, metadata: Metadata) -> Declared:
    def each(items: Any) -> Any:
        return tuple(replace(i, metadata=metadata) for i in items)

    return Declared(
        each(declared.entities), each(declared.sources), each(declared.views), each(declared.feature_sets)
    )


def acted(made: ApplyPlan) -> set[Action]:
    return {c.action for c in made.changes} - {Action.UNCHANGED}


@settings(max_examples=60, deadline=None)
@given(declarations(), declarations())
def test_apply_is_idempotent(first: Declared, second: Declared) -> None:
    catalog = applied(Catalog(P), plan(Catalog(P), first))
    for declared in (first, second):
        catalog = applied(catalog, plan(catalog, declared))
        assert acted(plan(catalog, declared)) == set()


@settings(max_examples=60, deadline=None)
@given(declarations(), METADATA)
def test_metadata_never_makes_a_version(declared: Declared, metadata: Metadata) -> None:
    catalog = applied(Catalog(P), plan(Catalog(P), declared))
    made = plan(catalog, with_metadata(declared, metadata))
    assert acted(made) <= {Action.UPDATE}
    after = applied(catalog, made)
    assert set(after.views) == set(catalog.views) and set(after.feature_sets) == set(catalog.feature_sets)


@settings(max_examples=60, deadline=None)
@given(declarations(), declarations())
def test_a_stored_version_never_changes(first: Declared, second: Declared) -> None:
    catalog = applied(Catalog(P), plan(Catalog(P), first))
    later = applied(catalog, plan(catalog, second))
    for ref, view in catalog.views.items():
        kept = later.views[ref]
        assert [(f.name, f.data_type, f.rules) for f in kept.features] == [
            (f.name, f.data_type, f.rules) for f in view.features
        ]
        assert (kept.ttl, kept.inputs, kept.entity) == (view.ttl, view.inputs, view.entity)
    for ref, bound in catalog.feature_sets.items():
        assert (later.feature_sets[ref].features, later.feature_sets[ref].views) == (
            bound.features,
            bound.views,
        )
