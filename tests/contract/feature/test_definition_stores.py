"""Contract tests for definition stores: memory and PostgreSQL."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from flywheel_common.errors import FailedPrecondition, InvalidArgument, NotFound
from flywheel_common.postgres.pool import Pool, transaction
from flywheel_feature.apply.applied import AppliedDefinitions, DefinitionStore
from flywheel_feature.apply.plan import NO_USES, Action, ApplyPlan, Declared
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import (
    HOUR,
    SECOND,
    Aggregation,
    AggregationFunction,
    BatchView,
    DataType,
    Entity,
    Expression,
    Feature,
    FeatureSet,
    Field,
    Metadata,
    OnDemandView,
    ParquetSource,
    RequestSource,
    Source,
    StreamSource,
    StreamView,
    VersionRef,
    View,
)
from flywheel_feature.fakes.definitions import MemoryDefinitions
from flywheel_feature.store.postgres.definitions import PostgresDefinitions

AT = datetime(2026, 1, 1, tzinfo=UTC)
F64 = DataType.FLOAT64
TAIL, TIME = Field("tailnum", DataType.STRING), Field("at", DataType.TIMESTAMP)
PLANES = Metadata("planes by tail number", "ann", {"team": "ops"})
plane = Entity("p", "plane", (TAIL,), PLANES)
planes = Source(
    "p", "planes", (TAIL, TIME, Field("built", F64)), "at", "", ParquetSource("s3://bucket/planes/")
)
landings = Source("p", "landings", (TAIL, TIME, Field("delay", F64)), "at", "", StreamSource(30 * SECOND, 4))
trip = Source("p", "trip", (Field("year", F64),), "", "", RequestSource())
facts = View(
    "p", "facts", "plane", BatchView("planes", (Feature("built", F64, field="built"),)), ttl=24 * HOUR
)
mean_delay = Aggregation("late", AggregationFunction.MEAN, "delay", 3 * HOUR)
recent = View("p", "recent", "plane", StreamView("landings", (mean_delay,)))
years = Expression(Feature("years", F64), "year - facts__built")
age = View("p", "age", "", OnDemandView(("facts",), ("trip",), (years,)))
late = FeatureSet("p", "late", ("recent:late", "facts:built", "age:years"))
EVERYTHING = Declared((plane,), (planes, landings, trip), (facts, recent, age), (late,))
FACTS = Declared((plane,), (planes,), (facts,))


@pytest.fixture
def store(backing: str, request: pytest.FixtureRequest) -> DefinitionStore:
    if backing == "memory":
        return MemoryDefinitions()
    # The poll interval is longer than any test, so that changes are seen by notification only.
    return PostgresDefinitions(request.getfixturevalue("pool"), poll_seconds=3600.0)


async def apply(store: DefinitionStore, declared: Declared, *deletes: str) -> ApplyPlan:
    project = next((i.project for i in (*declared.entities, *declared.views, *declared.feature_sets)), "p")
    names = [f"projects/{project}/{name}" for name in deletes]
    return await store.apply(project, declared, names, AT, NO_USES)


async def read(store: DefinitionStore, project: str = "p") -> Catalog:
    return next((c for c in await store.changed({}) if c.project == project), Catalog(project))


def actions(plan: ApplyPlan) -> dict[str, Action]:
    return {c.name.removeprefix("projects/p/"): c.action for c in plan.changes}


async def test_applied_definitions_read_back_with_types_and_versions(store: DefinitionStore) -> None:
    created = actions(await apply(store, EVERYTHING))
    assert {Action.CREATE} == set(created.values())
    assert {
        "entities/plane",
        "sources/planes",
        "sources/landings",
        "sources/trip",
        "views/facts/versions/1",
        "views/recent/versions/1",
        "views/age/versions/1",
        "featureSets/late/versions/1",
    } == set(created)
    catalog = await read(store)
    assert {"plane": plane} == dict(catalog.entities)
    assert {"planes": planes, "landings": landings, "trip": trip} == dict(catalog.sources)
    assert {"facts", "recent", "age"} == set(catalog.latest_views)
    for view in (facts, recent, age):
        found = catalog.view(view.id, 1)
        assert found == catalog.view(view.id)
        assert (view.entity, view.ttl, 1) == (found.entity, found.ttl, found.version)
        assert found.created_at is not None
    assert (Feature("built", F64, field="built"),) == catalog.view("facts").features
    assert [("late", F64)] == [(f.name, f.data_type) for f in catalog.view("recent").features]
    assert catalog.view("facts").kind == facts.kind
    bound = catalog.feature_set("late", 1)
    assert (VersionRef("recent", 1), VersionRef("facts", 1), VersionRef("age", 1)) == bound.views
    assert (Field("recent__late", F64), Field("facts__built", F64), Field("age__years", F64)) == bound.schema
    assert ((TAIL,), (Field("year", F64),)) == (bound.join_keys, bound.request_fields)


async def test_definition_stores_apply_time_and_bound_versions(
    store: DefinitionStore,
) -> None:
    await apply(store, EVERYTHING)
    catalog = await read(store)
    assert (VersionRef("facts", 1),) == catalog.view("age").inputs
    assert {AT} == {v.created_at for v in (*catalog.views.values(), *catalog.feature_sets.values())}


async def test_changed_view_is_a_new_version_and_the_old_one_is_unchanged(
    store: DefinitionStore,
) -> None:
    await apply(store, EVERYTHING)
    before = (await read(store)).view("facts", 1)
    plan = await apply(store, replace(FACTS, views=(replace(facts, ttl=HOUR),)))
    (change,) = [c for c in plan.changes if "/views/" in c.name]
    assert (Action.NEW_VERSION, "projects/p/views/facts/versions/2") == (change.action, change.name)
    assert ("projects/p/featureSets/late/versions/1", "projects/p/views/age/versions/1") == change.readers
    catalog = await read(store)
    assert before == catalog.view("facts", 1)
    assert (2, HOUR) == (catalog.view("facts").version, catalog.view("facts").ttl)
    assert VersionRef("facts", 1) in catalog.feature_set("late").views, "bound until the set is applied again"
    again = actions(await apply(store, EVERYTHING))
    # Applying the content of version 1 again makes version 3.
    assert Action.NEW_VERSION == again["views/facts/versions/3"]


async def test_metadata_of_a_version_changes_in_place(store: DefinitionStore) -> None:
    await apply(store, FACTS)
    described = replace(facts, metadata=Metadata("about planes", "bob"), freshness_sla=HOUR)
    plan = actions(await apply(store, replace(FACTS, views=(described,))))
    assert {
        "entities/plane": Action.UNCHANGED,
        "sources/planes": Action.UNCHANGED,
        "views/facts/versions/1": Action.UPDATE,
    } == plan
    found = (await read(store)).view("facts", 1)
    assert (described.metadata, HOUR) == (found.metadata, found.freshness_sla)


async def test_plan_equals_the_apply_and_changes_nothing(store: DefinitionStore) -> None:
    await apply(store, FACTS)
    wanted = replace(EVERYTHING, views=(replace(facts, ttl=HOUR), recent, age))
    before = await read(store)
    planned = await store.plan("p", wanted, [], AT, NO_USES)
    assert before == await read(store)
    assert [(c.action, c.name, c.differences) for c in planned.changes] == [
        (c.action, c.name, c.differences) for c in (await apply(store, wanted)).changes
    ]
    broken = await store.plan("p", Declared((Entity("p", "pilot", ()),)), [], AT, NO_USES)
    assert [("projects/p/entities/pilot", "join_keys")] == [(v.name, v.field) for v in broken.violations]


async def test_invalid_apply_stores_nothing(store: DefinitionStore) -> None:
    await apply(store, FACTS)
    before = await read(store)
    strange = FeatureSet("p", "strange", ("facts:built", "facts:wings"))
    with pytest.raises(InvalidArgument) as unknown:
        await apply(store, Declared(sources=(landings,), views=(recent,), feature_sets=(strange,)))
    assert "UNKNOWN_REFERENCE" == unknown.value.reason
    with pytest.raises(InvalidArgument) as invalid:
        await apply(store, Declared((Entity("p", "pilot", ()),), (landings,), (recent,)))
    assert "INVALID_DEFINITION" == invalid.value.reason
    with pytest.raises(FailedPrecondition) as used:
        await apply(store, Declared(sources=(landings,), views=(recent,)), "entities/plane")
    assert "IN_USE" == used.value.reason
    with pytest.raises(NotFound) as absent:
        await apply(store, Declared(sources=(landings,), views=(recent,)), "views/none")
    assert "UNKNOWN_REFERENCE" == absent.value.reason
    assert before == await read(store)


async def test_concurrent_applies_are_serialized_and_none_is_lost(store: DefinitionStore) -> None:
    await apply(store, FACTS)
    hours = [replace(facts, ttl=n * HOUR) for n in range(1, 9)]
    others = [replace(facts, id=f"other{n}") for n in range(4)]
    plans = await asyncio.gather(*(apply(store, replace(FACTS, views=(v,))) for v in (*hours, *others)))
    changes = [c for plan in plans for c in plan.changes if "/views/" in c.name]
    assert [f"projects/p/views/facts/versions/{n}" for n in range(2, 10)] == sorted(
        c.name for c in changes if c.action is Action.NEW_VERSION
    )
    catalog = await read(store)
    assert {n * HOUR for n in range(1, 9)} == {catalog.view("facts", n).ttl for n in range(2, 10)}
    assert 9 == catalog.view("facts").version
    assert {"facts", *(v.id for v in others)} == set(catalog.latest_views)


async def test_deleted_names_keep_their_versions_and_numbers_are_not_reused(
    store: DefinitionStore,
) -> None:
    await apply(store, EVERYTHING)
    await apply(store, replace(FACTS, views=(replace(facts, ttl=HOUR),)))
    before = await read(store)
    deleted = await apply(store, Declared(), "featureSets/late", "views/age", "views/facts", "sources/planes")
    assert {Action.DELETE} == set(actions(deleted).values())
    after = await read(store)
    assert {"recent"} == set(after.latest_views)
    assert {} == after.latest_feature_sets
    assert {"landings", "trip"} == set(after.sources)
    assert before.views == after.views
    assert before.feature_sets == after.feature_sets
    again = actions(await apply(store, EVERYTHING))
    assert (Action.CREATE, Action.CREATE) == (again["views/facts/versions/3"], again["sources/planes"])
    assert Action.CREATE == again["featureSets/late/versions/2"]
    assert before.view("facts", 2) == (await read(store)).view("facts", 2)


async def test_projects_are_separate(store: DefinitionStore) -> None:
    await apply(store, FACTS)
    theirs = Declared((replace(plane, project="q", join_keys=(Field("id", DataType.INT64),)),))
    assert {Action.CREATE} == {c.action for c in (await apply(store, theirs)).changes}
    assert {"plane": plane} == dict((await read(store, "p")).entities)
    assert {"plane": theirs.entities[0]} == dict((await read(store, "q")).entities)
    assert not (await read(store, "q")).views


async def test_revision_rises_with_each_change_and_known_ones_are_not_reread(
    store: DefinitionStore,
) -> None:
    await apply(store, FACTS)
    first = await read(store)
    assert [] == await store.changed({"p": first.revision})
    await apply(store, FACTS)
    assert [] == await store.changed({"p": first.revision}), "nothing was changed"
    await apply(store, replace(FACTS, views=(replace(facts, ttl=HOUR),)))
    (second,) = await store.changed({"p": first.revision})
    assert first.revision + 1 == second.revision
    await apply(store, Declared((replace(plane, project="q"),)))
    assert ["q"] == [c.project for c in await store.changed({"p": second.revision})]


async def test_every_watcher_is_notified_of_an_apply(store: DefinitionStore) -> None:
    async with aclosing(store.changes()) as one, aclosing(store.changes()) as two:
        for changes in (one, two):
            await anext(changes)
        notified: list[Any] = [asyncio.ensure_future(anext(changes)) for changes in (one, two)]
        await apply(store, FACTS)
        async with asyncio.timeout(20):
            await asyncio.gather(*notified)


async def test_copy_in_memory_follows_the_store(store: DefinitionStore) -> None:
    copy = AppliedDefinitions(store)
    changed = asyncio.Event()
    copy.on_change(changed.set)
    following = asyncio.create_task(copy.follow())
    try:
        await apply(store, FACTS)
        async with asyncio.timeout(20):
            while not copy.catalog("p").views:
                await changed.wait()
                changed.clear()
        assert facts.kind == copy.catalog("p").view("facts").kind
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_apply_within_a_transaction_is_rolled_back_with_it(pool: Pool) -> None:
    store = PostgresDefinitions(pool)

    async def applied_then(error: Exception | None) -> None:
        async with transaction(pool) as conn:
            await store.apply("p", FACTS, [], AT, NO_USES, within=conn)
            assert [] == [c for c in await store.changed({}) if c.views], "not visible before the commit"
            if error is not None:
                raise error

    with pytest.raises(ZeroDivisionError):
        await applied_then(ZeroDivisionError())
    assert Catalog("p") == await read(store)
    await applied_then(None)
    assert {"facts"} == set((await read(store)).latest_views)
