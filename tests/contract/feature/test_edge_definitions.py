"""Definitions at the gRPC edge: conversion of definitions and plans, paging, status codes, projects."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.message import Message

import flywheel as fw
from flywheel_common.errors import FailedPrecondition, FlywheelError, InvalidArgument, NotFound
from flywheel_protos.feature.v1 import definitions_pb2
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.types.v1 import value_pb2

DEFINITIONS = """
entities {
  name: "projects/p/entities/plane"
  join_keys { name: "tailnum" data_type: DATA_TYPE_STRING description: "N-number" }
  description: "planes by tail number" owner: "ann" tags { key: "team" value: "ops" }
}
sources {
  name: "projects/p/sources/planes" timestamp_field: "at" created_field: "known" owner: "ann"
  schema { name: "tailnum" data_type: DATA_TYPE_STRING } schema { name: "at" data_type: DATA_TYPE_TIMESTAMP }
  schema { name: "known" data_type: DATA_TYPE_TIMESTAMP }
  schema { name: "built" data_type: DATA_TYPE_FLOAT64 }
  schema { name: "shape" data_type: DATA_TYPE_FLOAT32_VECTOR vector_size: 3 }
  parquet {
    uri: "s3://bucket/planes/" format: TABLE_FORMAT_DELTA
    columns { key: "Year Built" value: "built" } columns { key: "Form" value: "shape" }
  }
}
sources {
  name: "projects/p/sources/landings" timestamp_field: "at" description: "all landings"
  schema { name: "tailnum" data_type: DATA_TYPE_STRING } schema { name: "at" data_type: DATA_TYPE_TIMESTAMP }
  schema { name: "delay" data_type: DATA_TYPE_FLOAT64 }
  stream { allowed_lateness { seconds: 30 } partitions: 4 }
}
sources { name: "projects/p/sources/trip" request {} schema { name: "year" data_type: DATA_TYPE_FLOAT64 } }
views {
  name: "projects/p/views/facts" entity: "projects/p/entities/plane" ttl { seconds: 86400 }
  freshness_sla { seconds: 3600 } description: "facts about planes" tags { key: "team" value: "ops" }
  batch {
    source: "projects/p/sources/planes"
    features { name: "year_built" data_type: DATA_TYPE_FLOAT64 field: "built" description: "year" }
    features { name: "shape" data_type: DATA_TYPE_FLOAT32_VECTOR vector_size: 3 field: "shape" }
  }
}
views {
  name: "projects/p/views/recent" entity: "projects/p/entities/plane"
  stream {
    source: "projects/p/sources/landings" filter: "delay > 0" tile { seconds: 600 }
    aggregations {
      name: "late" function: AGGREGATION_FUNCTION_MEAN field: "delay" description: "3 h"
      window { seconds: 10800 }
    }
    aggregations {
      name: "newest" function: AGGREGATION_FUNCTION_LAST_N field: "delay" window { seconds: 10800 } limit: 5
    }
  }
}
views {
  name: "projects/p/views/age"
  on_demand {
    views: "projects/p/views/facts" request_sources: "projects/p/sources/trip"
    expressions { feature { name: "years" data_type: DATA_TYPE_FLOAT64 } sql: "year - facts__year_built" }
  }
}
feature_sets {
  name: "projects/p/featureSets/late"
  features: "recent:late" features: "facts:year_built" features: "age:years"
  description: "delays" owner: "ann"
}
"""
FACTS, RECENT, AGE = (f"projects/p/views/{name}/versions/1" for name in ("facts", "recent", "age"))
LATE = "projects/p/featureSets/late/versions/1"
CREATE, NEW_VERSION = pb.PlannedChange.ACTION_CREATE, pb.PlannedChange.ACTION_NEW_VERSION


def definitions(**kept: bool) -> definitions_pb2.Definitions:
    """All definitions, or those of the given fields."""
    message = text_format.Parse(DEFINITIONS, definitions_pb2.Definitions())
    for field in message.DESCRIPTOR.fields if kept else ():
        if field.name not in kept:
            message.ClearField(field.name)  # type: ignore[arg-type]
    return message


async def apply(
    client: fw.Client, wanted: definitions_pb2.Definitions, *deleted: str, **fields: Any
) -> pb.ApplyDefinitionsResponse:
    request = pb.ApplyDefinitionsRequest(
        parent="projects/p", definitions=wanted, delete_names=[f"projects/p/{n}" for n in deleted], **fields
    )
    answer: pb.ApplyDefinitionsResponse = await client.feature.ApplyDefinitions(request)
    return answer


async def view(client: fw.Client, name: str) -> definitions_pb2.View:
    answer = await client.feature.GetView(pb.GetViewRequest(name=name))
    return answer.view


def assert_has_fields(sent: Message, received: Message) -> None:
    """`received` has all fields of `sent`, apart from the name, which gets a version."""
    for field, value in sent.ListFields():
        if field.name != "name":
            assert value == getattr(received, field.name), field.full_name


async def test_definitions_of_all_kinds_read_back_as_sent(client: fw.Client) -> None:
    sent = definitions()
    plan = await apply(client, sent)
    assert {CREATE} == {c.action for c in plan.changes}
    unversioned = {m.name for m in (*sent.entities, *sent.sources)}
    assert {*unversioned, FACTS, RECENT, AGE, LATE} == {c.name for c in plan.changes}

    entity = (await client.feature.GetEntity(pb.GetEntityRequest(name=sent.entities[0].name))).entity
    assert sent.entities[0] == entity
    for source in sent.sources:
        answer = await client.feature.GetSource(pb.GetSourceRequest(name=source.name))
        assert source == answer.source
    for wanted, name in zip(sent.views, (FACTS, RECENT, AGE), strict=True):
        found = await view(client, name)
        assert found == await view(client, wanted.name), "without a version the latest is read"
        assert (name, 1, True) == (found.name, found.version, found.HasField("created_at"))
        assert_has_fields(wanted, found)
    assert list(sent.views[0].batch.features) == list((await view(client, FACTS)).features)
    recent = [(f.name, f.data_type) for f in (await view(client, RECENT)).features]
    assert [("late", value_pb2.DATA_TYPE_FLOAT64), ("newest", value_pb2.DATA_TYPE_FLOAT64_LIST)] == recent
    age = [(f.name, f.data_type) for f in (await view(client, AGE)).features]
    assert [("years", value_pb2.DATA_TYPE_FLOAT64)] == age
    request = pb.GetFeatureSetRequest(name="projects/p/featureSets/late")
    late = (await client.feature.GetFeatureSet(request)).feature_set
    assert (LATE, 1, True) == (late.name, late.version, late.HasField("created_at"))
    assert_has_fields(sent.feature_sets[0], late)
    assert [RECENT, FACTS, AGE] == list(late.view_versions)
    assert ["recent__late", "facts__year_built", "age__years"] == [f.name for f in late.schema]
    assert (["tailnum"], ["year"]) == (
        [f.name for f in late.join_keys],
        [f.name for f in late.request_fields],
    )


async def test_every_list_of_definitions_has_pages(client: fw.Client) -> None:
    message = definitions()
    for number in range(4):
        for field, collection in (("entities", "entities"), ("feature_sets", "featureSets")):
            added = getattr(message, field).add()
            added.CopyFrom(getattr(message, field)[0])
            added.name = f"projects/p/{collection}/more{number}"
    await apply(client, message)
    methods: list[tuple[str, Any, Any]] = [
        ("entities", client.feature.ListEntities, pb.ListEntitiesRequest),
        ("sources", client.feature.ListSources, pb.ListSourcesRequest),
        ("views", client.feature.ListViews, pb.ListViewsRequest),
        ("feature_sets", client.feature.ListFeatureSets, pb.ListFeatureSetsRequest),
    ]
    for field, method, request in methods:
        names: list[str] = []
        sizes: list[int] = []
        token = ""
        while True:
            page = await method(request(parent="projects/p", page_size=2, page_token=token))
            names += [m.name.partition("/versions/")[0] for m in getattr(page, field)]
            sizes.append(len(getattr(page, field)))
            token = page.next_page_token
            if not token:
                break
        assert sorted(m.name for m in getattr(message, field)) == names
        assert {2} == set(sizes[:-1])


async def test_changed_view_is_a_new_version_and_names_its_readers(client: fw.Client) -> None:
    await apply(client, definitions())
    before = await view(client, FACTS)
    changed = definitions(views=True)
    del changed.views[1:]
    changed.views[0].ttl.FromSeconds(60)
    planned = await apply(client, changed, validate_only=True)
    assert before == await view(client, "projects/p/views/facts"), "a plan changes nothing"
    plan = await apply(client, changed)
    assert list(planned.changes) == list(plan.changes)
    (change,) = [c for c in plan.changes if c.action == NEW_VERSION]
    assert "projects/p/views/facts/versions/2" == change.name
    assert {AGE, LATE} == set(change.readers)
    assert 1 == len(change.differences)
    assert before == await view(client, FACTS)
    latest = await view(client, "projects/p/views/facts")
    assert (2, 60) == (latest.version, latest.ttl.ToSeconds())


async def test_description_of_a_version_changes_in_place(client: fw.Client) -> None:
    await apply(client, definitions())
    changed = definitions(entities=True, sources=True, views=True)
    changed.views[0].description = "other words"
    plan = await apply(client, changed)
    updated = [c.name for c in plan.changes if c.action != pb.PlannedChange.ACTION_UNCHANGED]
    assert [FACTS] == updated
    assert "other words" == (await view(client, FACTS)).description


async def test_wrong_applies_have_documented_codes_and_store_nothing(client: fw.Client) -> None:
    await apply(client, definitions())
    before = await view(client, "projects/p/views/facts")
    unknown, invalid, valid = (definitions(views=True) for _ in range(3))
    for message in (unknown, invalid, valid):
        message.views[0].ttl.FromSeconds(60)
    unknown.feature_sets.add(name="projects/p/featureSets/strange", features=["facts:wings"])
    invalid.entities.add(name="projects/p/entities/pilot")
    cases: list[tuple[definitions_pb2.Definitions, str, type[FlywheelError], str]] = [
        (unknown, "", InvalidArgument, "UNKNOWN_REFERENCE"),
        (invalid, "", InvalidArgument, "INVALID_DEFINITION"),
        (valid, "entities/plane", FailedPrecondition, "IN_USE"),
        (valid, "views/none", NotFound, "UNKNOWN_REFERENCE"),
    ]
    for wanted, deleted, kind, reason in cases:
        with pytest.raises(kind) as refused:
            await apply(client, wanted, *([deleted] if deleted else []))
        assert reason == refused.value.reason
        assert before == await view(client, "projects/p/views/facts")
    planned = await apply(client, invalid, validate_only=True)
    assert [("projects/p/entities/pilot", "join_keys")] == [(v.name, v.field) for v in planned.violations]


async def test_deleted_definitions_are_not_found_but_versions_stay(client: fw.Client) -> None:
    await apply(client, definitions())
    before = await view(client, FACTS)
    deleted = await apply(
        client,
        definitions_pb2.Definitions(),
        "featureSets/late",
        "views/age",
        "views/facts",
        "sources/planes",
    )
    assert {pb.PlannedChange.ACTION_DELETE} == {c.action for c in deleted.changes}
    missing: list[tuple[Any, Any, str]] = [
        (client.feature.GetView, pb.GetViewRequest(name="projects/p/views/facts"), "UNKNOWN_VIEW"),
        (client.feature.GetSource, pb.GetSourceRequest(name="projects/p/sources/planes"), "UNKNOWN_SOURCE"),
        (
            client.feature.GetFeatureSet,
            pb.GetFeatureSetRequest(name="projects/p/featureSets/late"),
            "UNKNOWN_FEATURE_SET",
        ),
        (client.feature.GetEntity, pb.GetEntityRequest(name="projects/p/entities/none"), "UNKNOWN_ENTITY"),
    ]
    for method, request, reason in missing:
        with pytest.raises(NotFound) as absent:
            await method(request)
        assert reason == absent.value.reason
    assert before == await view(client, FACTS)
    listed = await client.feature.ListViews(pb.ListViewsRequest(parent="projects/p"))
    assert [RECENT] == [v.name for v in listed.views]
    again = await apply(client, definitions())
    assert "projects/p/views/facts/versions/2" in {c.name for c in again.changes if c.action == CREATE}


async def test_definitions_of_projects_are_separate(client: fw.Client) -> None:
    await apply(client, definitions())
    request = pb.ApplyDefinitionsRequest(
        parent="projects/q",
        definitions=definitions_pb2.Definitions(entities=definitions().entities),
    )
    request.definitions.entities[0].name = "projects/q/entities/plane"
    request.definitions.entities[0].join_keys[0].name = "id"
    assert {CREATE} == {c.action for c in (await client.feature.ApplyDefinitions(request)).changes}
    for project, key in (("p", "tailnum"), ("q", "id")):
        name = f"projects/{project}/entities/plane"
        found = (await client.feature.GetEntity(pb.GetEntityRequest(name=name))).entity
        assert key == found.join_keys[0].name
    others = await client.feature.ListViews(pb.ListViewsRequest(parent="projects/q"))
    assert [] == list(others.views)
