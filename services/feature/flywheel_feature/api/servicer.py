"""FeatureService at the edge: each method converts, awaits a use case, converts back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from flywheel_common.clock import Clock
from flywheel_common.errors import FlywheelError, InvalidArgument
from flywheel_common.names import Pattern, parse_project
from flywheel_common.paging import decode_token, encode_token, page_size
from flywheel_common.postgres.idempotency import Idempotency
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.api import convert_definitions, convert_jobs, convert_online
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
from flywheel_feature.api.training_set_methods import OfflineMethods
from flywheel_feature.api.write_methods import OnlineWriteMethods
from flywheel_feature.apply.applied import AppliedDefinitions
from flywheel_feature.apply.lineage import Models, ModelUses, lineage_of
from flywheel_feature.apply.plan import REGISTRY_DOWN, ApplyPlan
from flywheel_feature.ingest.freshness import FreshnessReader
from flywheel_feature.ingest.materialize_job import MaterializeJob
from flywheel_feature.ingest.push import Pusher
from flywheel_feature.jobs.model import Job
from flywheel_feature.jobs.runner import JobRunner
from flywheel_feature.online.features import OnlineFeatures
from flywheel_feature.online.lookup import SharedRead
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.feature.v1 import feature_pb2_grpc

log = get_logger(__name__)

JOB = Pattern("projects/{project}/jobs/{job:any}")


def add_to_server(servicer: FeatureServicer, server: Any) -> None:
    """Registers the servicer; GetOnlineFeatures may answer bytes that are serialized already."""
    feature_pb2_grpc.add_FeatureServiceServicer_to_server(servicer, _RawAnswers(server))


class _RawAnswers:
    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        raw = handlers["GetOnlineFeatures"]._replace(response_serializer=_serialized)
        self._server.add_registered_method_handlers(service, {**handlers, "GetOnlineFeatures": raw})


def _serialized(answer: pb.GetOnlineFeaturesResponse | bytes) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


class FeatureServicer(OfflineMethods, OnlineWriteMethods, feature_pb2_grpc.FeatureServiceServicer):
    def __init__(
        self,
        *,
        definitions: AppliedDefinitions,
        idempotency: Idempotency,
        online: OnlineFeatures,
        pushing: Pusher,
        materializing: MaterializeJob,
        freshness: FreshnessReader,
        jobs: JobRunner,
        models: Models,
        clock: Clock,
        **offline: Any,
    ) -> None:
        OfflineMethods.__init__(self, jobs=jobs, **offline)
        OnlineWriteMethods.__init__(
            self, definitions=definitions, pushing=pushing, materializing=materializing, jobs=jobs
        )
        self._definitions = definitions
        self._idempotency = idempotency
        self._online = online
        self._freshness = freshness
        self._jobs = jobs
        self._models = models
        self._clock = clock

    # ------------------------------------------------------------------------------------------ definitions
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
            log.warning("models could not be asked", reason=error.reason)
            return ModelUses(known=False)

    async def GetEntity(self, request: pb.GetEntityRequest, context: Any) -> pb.GetEntityResponse:
        project, item = plain_name(request.name, ENTITY)
        catalog = await self._definitions.current(project)
        return pb.GetEntityResponse(entity=convert_definitions.entity_to_proto(catalog.entity(item)))

    async def ListEntities(self, request: pb.ListEntitiesRequest, context: Any) -> pb.ListEntitiesResponse:
        items = (await self._definitions.current(parse_project(request.parent))).entities.values()
        page = page_of(
            items,
            parent=request.parent,
            text=request.filter,
            size=request.page_size,
            token=request.page_token,
        )
        return pb.ListEntitiesResponse(
            entities=map(convert_definitions.entity_to_proto, page.items),
            next_page_token=page.next_page_token,
        )

    async def GetSource(self, request: pb.GetSourceRequest, context: Any) -> pb.GetSourceResponse:
        project, item = plain_name(request.name, SOURCE)
        catalog = await self._definitions.current(project)
        return pb.GetSourceResponse(source=convert_definitions.source_to_proto(catalog.source(item)))

    async def ListSources(self, request: pb.ListSourcesRequest, context: Any) -> pb.ListSourcesResponse:
        items = (await self._definitions.current(parse_project(request.parent))).sources.values()
        page = page_of(
            items,
            parent=request.parent,
            text=request.filter,
            size=request.page_size,
            token=request.page_token,
        )
        return pb.ListSourcesResponse(
            sources=map(convert_definitions.source_to_proto, page.items), next_page_token=page.next_page_token
        )

    async def GetView(self, request: pb.GetViewRequest, context: Any) -> pb.GetViewResponse:
        project, item, version = versioned_name(request.name, VIEW, VIEW_VERSION)
        catalog = await self._definitions.current(project)
        return pb.GetViewResponse(view=convert_definitions.view_to_proto(catalog.view(item, version)))

    async def ListViews(self, request: pb.ListViewsRequest, context: Any) -> pb.ListViewsResponse:
        items = (await self._definitions.current(parse_project(request.parent))).latest_views.values()
        page = page_of(
            items,
            parent=request.parent,
            text=request.filter,
            size=request.page_size,
            token=request.page_token,
        )
        return pb.ListViewsResponse(
            views=map(convert_definitions.view_to_proto, page.items), next_page_token=page.next_page_token
        )

    async def GetFeatureSet(self, request: pb.GetFeatureSetRequest, context: Any) -> pb.GetFeatureSetResponse:
        project, item, version = versioned_name(request.name, FEATURE_SET, FEATURE_SET_VERSION)
        catalog = await self._definitions.current(project)
        found = catalog.feature_set(item, version)
        return pb.GetFeatureSetResponse(feature_set=convert_definitions.feature_set_to_proto(found))

    async def ListFeatureSets(
        self, request: pb.ListFeatureSetsRequest, context: Any
    ) -> pb.ListFeatureSetsResponse:
        items = (await self._definitions.current(parse_project(request.parent))).latest_feature_sets.values()
        page = page_of(
            items,
            parent=request.parent,
            text=request.filter,
            size=request.page_size,
            token=request.page_token,
        )
        return pb.ListFeatureSetsResponse(
            feature_sets=map(convert_definitions.feature_set_to_proto, page.items),
            next_page_token=page.next_page_token,
        )

    # ----------------------------------------------------------------------------------------------- online
    async def GetOnlineFeatures(
        self, request: pb.GetOnlineFeaturesRequest, context: Any
    ) -> pb.GetOnlineFeaturesResponse | bytes:
        shared = self._online.recent(request.feature_set)
        if shared is None or request.features:
            shared = await self._shared_read(request)
        lookup = convert_online.to_lookup(request, shared.plan)
        if request.layout == pb.ANSWER_LAYOUT_ROWS:
            return convert_online.answer_to_proto(await shared.answer(lookup), shared.plan, request.layout)
        return await shared.read(lookup)

    async def _shared_read(self, request: pb.GetOnlineFeaturesRequest) -> SharedRead:
        if request.feature_set:
            if request.features:
                raise InvalidArgument(
                    "Name a feature_set or features, not both.", reason="INVALID_REQUEST", field="features"
                )
            shared = await self._online.of_set(
                *versioned_name(request.feature_set, FEATURE_SET, FEATURE_SET_VERSION)
            )
            self._online.remember(request.feature_set, shared)
            return shared
        return await self._online.of_features(parse_project(request.parent), tuple(request.features))

    async def GetFreshness(self, request: pb.GetFreshnessRequest, context: Any) -> pb.GetFreshnessResponse:
        catalog = self._definitions.catalog(parse_project(request.parent))
        return pb.GetFreshnessResponse(
            freshness=map(convert_online.freshness_to_proto, await self._freshness.read(catalog))
        )

    # ------------------------------------------------------------------------------------------------- jobs
    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.GetJobResponse:
        return pb.GetJobResponse(
            job=convert_jobs.job_to_proto(await self._jobs.get(*_job_name(request.name)))
        )

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        query = f"{request.parent}\n{request.filter}"
        after = decode_token(request.page_token, query=query)
        size = page_size(request.page_size, default=100)
        kind, state = convert_jobs.job_filter(request.filter)
        found = await self._jobs.list(
            parse_project(request.parent),
            kind=kind,
            state=state,
            before=str(after[0]) if after else "",
            limit=size + 1,
        )
        more = encode_token([found[size - 1].id], query=query) if len(found) > size else ""
        return pb.ListJobsResponse(jobs=map(convert_jobs.job_to_proto, found[:size]), next_page_token=more)

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> AsyncIterator[pb.WatchJobResponse]:
        async for job in self._jobs.watch(*_job_name(request.name)):
            yield pb.WatchJobResponse(job=convert_jobs.job_to_proto(job))

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.CancelJobResponse:
        async def effect(conn: Any) -> pb.CancelJobResponse:
            # Cancelling twice is cancelling once: it needs no transaction with the answer.
            del conn
            job: Job = await self._jobs.cancel(*_job_name(request.name))
            return pb.CancelJobResponse(job=convert_jobs.job_to_proto(job))

        return await self._idempotency.run(
            "CancelJob", request.request_id, request, pb.CancelJobResponse, effect
        )


def _job_name(name: str) -> tuple[str, str]:
    parts = JOB.parse(name)
    return str(parts["project"]), str(parts["job"])
