"""applied_definitions.DefinitionStore by the RPCs of the service."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from flywheel_feature.api import convert_definitions
from flywheel_feature.apply.lineage import ModelUses
from flywheel_feature.apply.plan import Action, ApplyPlan, Change, Declared
from flywheel_feature.apply.violations import Violation
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import Entity, Feature, FeatureSet, Field, Source, VersionRef, View
from flywheel_protos.feature.v1 import definitions_pb2
from flywheel_protos.feature.v1 import feature_pb2 as pb

PAGE = 2
"""Few, so that lists come in several pages."""


class GrpcDefinitions:
    """No RPC names projects, so they are given; nor an on-demand view's input versions, revisions and the time of an apply."""

    def __init__(self, stub: Any, projects: Sequence[str]) -> None:
        self._stub = stub
        self._projects = projects
        self._versions: set[str] = set()
        """Every versioned name that an apply answered; lists have the latest alone."""

    async def plan(
        self, project: str, declared: Declared, delete_names: list[str], now: datetime, uses: ModelUses
    ) -> ApplyPlan:
        return await self._send(project, declared, delete_names, validate_only=True)

    async def apply(
        self,
        project: str,
        declared: Declared,
        delete_names: list[str],
        now: datetime,
        uses: ModelUses,
        *,
        within: Any = None,
    ) -> ApplyPlan:
        assert within is None
        plan = await self._send(project, declared, delete_names, validate_only=False)
        self._versions |= {c.name for c in plan.changes if "/versions/" in c.name}
        return plan

    async def changed(self, known: Mapping[str, int]) -> list[Catalog]:
        assert not known
        return [await self._catalog(project) for project in self._projects]

    def changes(self) -> AsyncGenerator[None]:
        raise NotImplementedError

    async def _send(
        self, project: str, declared: Declared, delete_names: list[str], *, validate_only: bool
    ) -> ApplyPlan:
        answer = await self._stub.ApplyDefinitions(
            pb.ApplyDefinitionsRequest(
                parent=f"projects/{project}",
                definitions=definitions_pb2.Definitions(
                    entities=map(convert_definitions.entity_to_proto, declared.entities),
                    sources=map(convert_definitions.source_to_proto, declared.sources),
                    views=map(convert_definitions.view_to_proto, declared.views),
                    feature_sets=map(convert_definitions.feature_set_to_proto, declared.feature_sets),
                ),
                delete_names=delete_names,
                validate_only=validate_only,
            )
        )
        return ApplyPlan(
            [
                Change(
                    Action(pb.PlannedChange.Action.Name(c.action).removeprefix("ACTION_")),
                    c.name,
                    tuple(c.differences),
                    tuple(c.readers),
                )
                for c in answer.changes
            ],
            [Violation(v.name, v.field, v.message) for v in answer.violations],
            list(answer.warnings),
        )

    async def _catalog(self, project: str) -> Catalog:
        listed = await self._listed(project)
        entities = [_entity(project, m) for m in listed["entities"]]
        sources = [_source(project, m) for m in listed["sources"]]
        latest_views = [_view(project, m) for m in listed["views"]]
        latest_sets = [_feature_set(project, m) for m in listed["feature_sets"]]
        own = [n for n in sorted(self._versions) if n.startswith(f"projects/{project}/")]
        views = [
            _view(project, (await self._stub.GetView(pb.GetViewRequest(name=name))).view)
            for name in own
            if "/views/" in name
        ]
        sets = [
            _feature_set(
                project, (await self._stub.GetFeatureSet(pb.GetFeatureSetRequest(name=name))).feature_set
            )
            for name in own
            if "/featureSets/" in name
        ]
        return Catalog(
            project,
            entities={e.id: e for e in entities},
            sources={s.id: s for s in sources},
            views={v.ref: v for v in views},
            feature_sets={s.ref: s for s in sets},
            latest_views={v.id: v for v in latest_views},
            latest_feature_sets={s.id: s for s in latest_sets},
        )

    async def _listed(self, project: str) -> dict[str, list[Any]]:
        """All of a project, by the field that the answers carry it in."""
        found: dict[str, list[Any]] = {}
        for field, method, request in (
            ("entities", self._stub.ListEntities, pb.ListEntitiesRequest),
            ("sources", self._stub.ListSources, pb.ListSourcesRequest),
            ("views", self._stub.ListViews, pb.ListViewsRequest),
            ("feature_sets", self._stub.ListFeatureSets, pb.ListFeatureSetsRequest),
        ):
            token, items = "", found.setdefault(field, [])
            while True:
                asked = request(parent=f"projects/{project}", page_size=PAGE, page_token=token)
                answer = await method(asked)
                items += getattr(answer, field)
                token = answer.next_page_token
                if not token:
                    break
        return found


def _entity(project: str, message: Any) -> Entity:
    declared, _ = convert_definitions.declared(project, definitions_pb2.Definitions(entities=[message]))
    return declared.entities[0]


def _source(project: str, message: Any) -> Source:
    declared, _ = convert_definitions.declared(project, definitions_pb2.Definitions(sources=[message]))
    return declared.sources[0]


def _view(project: str, message: definitions_pb2.View) -> View:
    name, _, version = message.name.partition("/versions/")
    assert int(version) == message.version
    plain = definitions_pb2.View()
    plain.CopyFrom(message)
    plain.name = name
    declared, _ = convert_definitions.declared(project, definitions_pb2.Definitions(views=[plain]))
    features = [
        Feature(f.name, _type(f), f.vector_size, f.description, (), f.field) for f in message.features
    ]
    assert not any(f.rules for f in message.features)
    return replace(
        declared.views[0],
        version=message.version,
        created_at=message.created_at.ToDatetime(UTC),
        features=tuple(features),
    )


def _feature_set(project: str, message: definitions_pb2.FeatureSet) -> FeatureSet:
    name, _, version = message.name.partition("/versions/")
    assert int(version) == message.version
    plain = definitions_pb2.FeatureSet()
    plain.CopyFrom(message)
    plain.name = name
    declared, _ = convert_definitions.declared(project, definitions_pb2.Definitions(feature_sets=[plain]))
    parts = [convert_definitions.VIEW_VERSION.parse(n) for n in message.view_versions]
    return replace(
        declared.feature_sets[0],
        version=message.version,
        created_at=message.created_at.ToDatetime(UTC),
        views=tuple(VersionRef(str(p["id"]), int(p["version"])) for p in parts),
        schema=_fields(message.schema),
        join_keys=_fields(message.join_keys),
        request_fields=_fields(message.request_fields),
    )


def _fields(messages: Any) -> tuple[Field, ...]:
    return tuple(Field(m.name, _type(m), m.vector_size, m.description) for m in messages)


def _type(message: Any) -> Any:
    from flywheel_feature.definitions.model import DataType

    return DataType(message.data_type)
