"""The methods of FeatureService that apply and read definitions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from flywheel_common.clock import Clock
from flywheel_common.errors import FlywheelError
from flywheel_common.names import parse_project
from flywheel_common.paging import Page
from flywheel_common.postgres.idempotency import Idempotency
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.api import convert_definitions
from flywheel_feature.api.convert_definitions import (
    ENTITY,
    FEATURE_SET,
    FEATURE_SET_VERSION,
    SOURCE,
    VIEW,
    VIEW_VERSION,
    plain_name,
    versioned_name,
)
from flywheel_feature.api.listing import page_of
from flywheel_feature.apply.applied import AppliedDefinitions
from flywheel_feature.apply.lineage import Models, ModelUses, lineage_of
from flywheel_feature.apply.plan import REGISTRY_DOWN, ApplyPlan
from flywheel_feature.ingest.push import Pusher
from flywheel_protos.feature.v1 import feature_pb2 as pb

log = get_logger(__name__)
T = TypeVar("T")


class DefinitionMethods:
    """Mixin of the servicer."""

    _definitions: AppliedDefinitions
    _idempotency: Idempotency
    _models: Models
    _pushing: Pusher
    _clock: Clock

    async def ApplyDefinitions(
        self, request: pb.ApplyDefinitionsRequest, context: Any
    ) -> pb.ApplyDefinitionsResponse:
        project = parse_project(request.parent)
        declared, unreadable = convert_definitions.declared(project, request.definitions)
        deletes = list(request.delete_names)
        uses = await self._model_uses(project)
        if request.validate_only:
            plan = await self._definitions.plan(project, declared, deletes, self._clock.now(), uses)
            plan.violations[:0] = unreadable
            return convert_definitions.plan_to_proto(plan)
        ApplyPlan(violations=unreadable).raise_violations()

        async def effect(conn: Any) -> pb.ApplyDefinitionsResponse:
            now = self._clock.now()
            plan = await self._definitions.apply(project, declared, deletes, now, uses, within=conn)
            return convert_definitions.plan_to_proto(plan)

        answer = await self._idempotency.run(
            "ApplyDefinitions", request.request_id, request, pb.ApplyDefinitionsResponse, effect
        )
        await self._definitions.refresh()
        await self._pushing.prepare(
            s for s in self._definitions.catalog(project).sources.values() if s.is_stream
        )
        return answer

    async def GetLineage(self, request: pb.GetLineageRequest, context: Any) -> pb.GetLineageResponse:
        project = parse_project(request.parent or "/".join(request.name.split("/")[:2]))
        uses = await self._model_uses(project)
        lineage = lineage_of(await self._definitions.current(project), uses, request.name)
        return convert_definitions.lineage_to_proto(lineage, () if uses.known else (REGISTRY_DOWN,))

    async def _model_uses(self, project: str) -> ModelUses:
        try:
            return ModelUses(tuple(await self._models.feature_uses(project)))
        except FlywheelError as error:
            log.warning("the registry did not list model uses", reason=error.reason)
            return ModelUses(known=False)

    async def GetEntity(self, request: pb.GetEntityRequest, context: Any) -> pb.GetEntityResponse:
        project, item = plain_name(request.name, ENTITY)
        catalog = await self._definitions.current(project)
        return pb.GetEntityResponse(entity=convert_definitions.entity_to_proto(catalog.entity(item)))

    async def ListEntities(self, request: pb.ListEntitiesRequest, context: Any) -> pb.ListEntitiesResponse:
        catalog = await self._definitions.current(parse_project(request.parent))
        page = _page(catalog.entities.values(), request)
        entities = map(convert_definitions.entity_to_proto, page.items)
        return pb.ListEntitiesResponse(entities=entities, next_page_token=page.next_page_token)

    async def GetSource(self, request: pb.GetSourceRequest, context: Any) -> pb.GetSourceResponse:
        project, item = plain_name(request.name, SOURCE)
        catalog = await self._definitions.current(project)
        return pb.GetSourceResponse(source=convert_definitions.source_to_proto(catalog.source(item)))

    async def ListSources(self, request: pb.ListSourcesRequest, context: Any) -> pb.ListSourcesResponse:
        catalog = await self._definitions.current(parse_project(request.parent))
        page = _page(catalog.sources.values(), request)
        sources = map(convert_definitions.source_to_proto, page.items)
        return pb.ListSourcesResponse(sources=sources, next_page_token=page.next_page_token)

    async def GetView(self, request: pb.GetViewRequest, context: Any) -> pb.GetViewResponse:
        project, item, version = versioned_name(request.name, VIEW, VIEW_VERSION)
        catalog = await self._definitions.current(project)
        return pb.GetViewResponse(view=convert_definitions.view_to_proto(catalog.view(item, version)))

    async def ListViews(self, request: pb.ListViewsRequest, context: Any) -> pb.ListViewsResponse:
        catalog = await self._definitions.current(parse_project(request.parent))
        page = _page(catalog.latest_views.values(), request)
        views = map(convert_definitions.view_to_proto, page.items)
        return pb.ListViewsResponse(views=views, next_page_token=page.next_page_token)

    async def GetFeatureSet(self, request: pb.GetFeatureSetRequest, context: Any) -> pb.GetFeatureSetResponse:
        project, item, version = versioned_name(request.name, FEATURE_SET, FEATURE_SET_VERSION)
        catalog = await self._definitions.current(project)
        found = catalog.feature_set(item, version)
        return pb.GetFeatureSetResponse(feature_set=convert_definitions.feature_set_to_proto(found))

    async def ListFeatureSets(
        self, request: pb.ListFeatureSetsRequest, context: Any
    ) -> pb.ListFeatureSetsResponse:
        catalog = await self._definitions.current(parse_project(request.parent))
        page = _page(catalog.latest_feature_sets.values(), request)
        sets = map(convert_definitions.feature_set_to_proto, page.items)
        return pb.ListFeatureSetsResponse(feature_sets=sets, next_page_token=page.next_page_token)


def _page(items: Iterable[T], request: Any) -> Page[T]:
    """The page that a List request names."""
    return page_of(
        items, parent=request.parent, text=request.filter, size=request.page_size, token=request.page_token
    )
