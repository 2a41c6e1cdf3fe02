"""The methods of FeatureService that push rows, materialize, rebuild and erase."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from flywheel_common.errors import FlywheelError
from flywheel_common.grpc.answer_stream import answered_in_order
from flywheel_common.names import parse_project
from flywheel_feature.api import convert_jobs, convert_online
from flywheel_feature.api.convert_definitions import ENTITY, SOURCE, VIEW, plain_name
from flywheel_feature.api.errors import NotAStreamSource, UnsupportedPushTarget
from flywheel_feature.apply.applied import AppliedDefinitions
from flywheel_feature.definitions.errors import NotABatchView
from flywheel_feature.definitions.model import BatchView
from flywheel_feature.encoding import wire_columns
from flywheel_feature.erasure import erase_job
from flywheel_feature.ingest import materialize_job, rebuild_job
from flywheel_feature.ingest.materialize_job import MaterializeJob
from flywheel_feature.ingest.push import Pusher
from flywheel_feature.jobs.runner import JobRunner
from flywheel_protos.feature.v1 import feature_pb2 as pb

_STREAM_TARGETS = (pb.PUSH_TARGET_UNSPECIFIED, pb.PUSH_TARGET_ONLINE_AND_OFFLINE)


class WriteMethods:
    """Mixin of the servicer."""

    _definitions: AppliedDefinitions
    _pushing: Pusher
    _materializing: MaterializeJob
    _jobs: JobRunner

    async def PushFeatures(self, request: pb.PushFeaturesRequest, context: Any) -> pb.PushFeaturesResponse:
        # The sender may leave row_count out; reading the columns needs it.
        request.rows.row_count = wire_columns.row_total(request.rows)
        if VIEW.match(request.target) is not None:
            return await self._push_to_view(request)
        return await self._push_to_source(request)

    async def _push_to_source(self, request: pb.PushFeaturesRequest) -> pb.PushFeaturesResponse:
        project, source_id = plain_name(request.target, SOURCE)
        catalog = await self._definitions.catalog_with(project, lambda c: c.source(source_id))
        source = catalog.source(source_id)
        if not source.is_stream:
            raise NotAStreamSource(
                f"{source.name} is not a stream source: push to a stream source or to a batch view."
            )
        if request.push_target not in _STREAM_TARGETS:
            raise UnsupportedPushTarget(
                f"push_target {pb.PushTarget.Name(request.push_target)} is not possible for a stream source: "
                "its rows go online and offline."
            )
        columns = wire_columns.read_rows(request.rows, source.schema)
        rows = request.rows.row_count
        pushed = await self._pushing.to_source(catalog, source, columns, rows, request.event_ids)
        return convert_online.pushed_to_proto(source.name, pushed)

    async def _push_to_view(self, request: pb.PushFeaturesRequest) -> pb.PushFeaturesResponse:
        project, view_id = plain_name(request.target, VIEW)
        catalog = await self._definitions.catalog_with(project, lambda c: c.view(view_id))
        view = catalog.view(view_id)
        if not isinstance(view.kind, BatchView):
            raise NotABatchView(f"{view.base_name} is not a batch view: push to its stream source.")
        source = catalog.source(view.kind.source)
        columns = wire_columns.read_rows(request.rows, source.schema)
        pushed = await self._pushing.to_view(
            catalog,
            view,
            source,
            columns,
            request.rows.row_count,
            offline=request.push_target != pb.PUSH_TARGET_ONLINE,
            online=request.push_target != pb.PUSH_TARGET_OFFLINE,
        )
        return convert_online.pushed_to_proto(source.name, pushed)

    async def StreamPushFeatures(
        self, requests: AsyncIterable[pb.StreamPushFeaturesRequest], context: Any
    ) -> AsyncIterator[pb.StreamPushFeaturesResponse]:
        async def push(request: pb.StreamPushFeaturesRequest) -> pb.PushFeaturesResponse | FlywheelError:
            try:
                return await self.PushFeatures(request.push, context)
            except FlywheelError as error:
                return error

        sequence = 0
        async for outcome in answered_in_order(requests, push):
            answer = pb.StreamPushFeaturesResponse(sequence=sequence)
            if isinstance(outcome, FlywheelError):
                answer.error.CopyFrom(convert_online.push_error(outcome))
            else:
                answer.accepted.CopyFrom(outcome)
            yield answer
            sequence += 1

    async def MaterializeView(
        self, request: pb.MaterializeViewRequest, context: Any
    ) -> pb.MaterializeViewResponse:
        materialize = convert_jobs.to_materialize(request)
        job = await self._jobs.submit(
            materialize_job.KIND,
            materialize.dump(),
            request.request_id,
            project=materialize.project,
            check=lambda: self._materializing.validate(materialize),
        )
        return pb.MaterializeViewResponse(job=convert_jobs.job_to_proto(job))

    async def RebuildOnlineStore(
        self, request: pb.RebuildOnlineStoreRequest, context: Any
    ) -> pb.RebuildOnlineStoreResponse:
        project = parse_project(request.parent)
        job = await self._jobs.submit(
            rebuild_job.KIND,
            json.dumps({"project": project}).encode(),
            request.request_id,
            project=project,
        )
        return pb.RebuildOnlineStoreResponse(job=convert_jobs.job_to_proto(job))

    async def EraseEntity(self, request: pb.EraseEntityRequest, context: Any) -> pb.EraseEntityResponse:
        project, entity_id = plain_name(request.entity, ENTITY)
        catalog = await self._definitions.catalog_with(project, lambda c: c.entity(entity_id))
        erase = convert_jobs.to_erase(project, catalog.entity(entity_id), request.join_keys)
        job = await self._jobs.submit(erase_job.KIND, erase.dump(), request.request_id, project=project)
        return pb.EraseEntityResponse(job=convert_jobs.job_to_proto(job))
