"""The methods of FeatureService that work on history: training sets and skew checks."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from flywheel_common.errors import NotFound
from flywheel_common.ids import Ids
from flywheel_common.names import parse_project
from flywheel_common.paging import cut, decode_token, page_size
from flywheel_feature import convert, convert_offline
from flywheel_feature.convert_definitions import plain_name
from flywheel_feature.jobs import JobRunner
from flywheel_feature.offline.ports import TrainingSets
from flywheel_feature.offline.training_set import TrainingSetBuilder
from flywheel_protos.feature.v1 import feature_pb2 as pb


class OfflineMethods:
    """A part of the servicer; each method converts, awaits a use case, converts back."""

    def __init__(
        self, *, jobs: JobRunner, training_sets: TrainingSets, builder: TrainingSetBuilder, ids: Ids
    ) -> None:
        self._job_runner = jobs
        self._training_sets = training_sets
        self._builder = builder
        self._ids = ids

    async def BuildTrainingSet(
        self, request: pb.BuildTrainingSetRequest, context: Any
    ) -> pb.BuildTrainingSetResponse:
        named = convert_offline.with_training_set_id(request, self._ids.new())
        asked = convert_offline.training_set_request(named)
        await self._builder.validate(asked)
        body = named.SerializeToString(deterministic=True)
        job = await self._job_runner.submit(
            convert_offline.TRAINING_SET_JOB,
            body,
            request.request_id,
            project=asked.project,
            training_set=asked.name,
        )
        return pb.BuildTrainingSetResponse(job=convert.job_to_proto(job))

    async def GetTrainingSet(
        self, request: pb.GetTrainingSetRequest, context: Any
    ) -> pb.GetTrainingSetResponse:
        project, set_id = plain_name(request.name, convert_offline.TRAINING_SET)
        found = await self._training_sets.get(project, set_id)
        if found is None:
            raise NotFound(
                f"{request.name} does not exist: build it first, or look it up with ListTrainingSets.",
                reason="UNKNOWN_TRAINING_SET",
                name=request.name,
            )
        return pb.GetTrainingSetResponse(training_set=convert_offline.training_set_to_proto(found))

    async def ListTrainingSets(
        self, request: pb.ListTrainingSetsRequest, context: Any
    ) -> pb.ListTrainingSetsResponse:
        query = f"{request.parent}\n{request.filter}"
        after = decode_token(request.page_token, query=query)
        size = page_size(request.page_size, default=100)
        named = request.filter.startswith("feature_set=")
        found = await self._training_sets.list(
            parse_project(request.parent),
            feature_set=request.filter.removeprefix("feature_set=") if named else "",
            text="" if named else request.filter,
            before=(datetime.fromisoformat(str(after[0])), str(after[1])) if after else None,
            limit=size + 1,
        )
        page = cut(found, size, lambda s: [s.created_at.isoformat(), s.id], query=query)
        return pb.ListTrainingSetsResponse(
            training_sets=map(convert_offline.training_set_to_proto, page.items),
            next_page_token=page.next_page_token,
        )

    async def CheckSkew(self, request: pb.CheckSkewRequest, context: Any) -> pb.CheckSkewResponse:
        asked = convert_offline.skew_request(request)
        body = request.SerializeToString(deterministic=True)
        job = await self._job_runner.submit(
            convert_offline.SKEW_JOB, body, request.request_id, project=asked.project
        )
        return pb.CheckSkewResponse(job=convert.job_to_proto(job))
