"""The methods of FeatureService that build and read training sets and check skew."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from flywheel_common.ids import Ids
from flywheel_common.names import parse_project
from flywheel_common.paging import decode_token, encode_token, page_size
from flywheel_feature.api import convert_jobs, convert_training_sets
from flywheel_feature.api.convert_training_sets import SKEW_JOB, TRAINING_SET, TRAINING_SET_JOB
from flywheel_feature.api.errors import InvalidFilter, UnknownTrainingSet
from flywheel_feature.jobs.runner import JobRunner
from flywheel_feature.offline.build import TrainingSetBuilder
from flywheel_feature.offline.ports import TrainingSets
from flywheel_protos.feature.v1 import feature_pb2 as pb


class TrainingSetMethods:
    """Mixin of the servicer."""

    _jobs: JobRunner
    _builder: TrainingSetBuilder
    _training_sets: TrainingSets
    _ids: Ids

    async def BuildTrainingSet(
        self, request: pb.BuildTrainingSetRequest, context: Any
    ) -> pb.BuildTrainingSetResponse:
        named = convert_training_sets.with_training_set_id(request, self._ids.new())
        wanted = convert_training_sets.training_set_request(named)
        job = await self._jobs.submit(
            TRAINING_SET_JOB,
            named.SerializeToString(deterministic=True),
            request.request_id,
            project=wanted.project,
            training_set=wanted.name,
            check=lambda: self._builder.validate(wanted),
        )
        return pb.BuildTrainingSetResponse(job=convert_jobs.job_to_proto(job))

    async def GetTrainingSet(
        self, request: pb.GetTrainingSetRequest, context: Any
    ) -> pb.GetTrainingSetResponse:
        parts = TRAINING_SET.parse(request.name)
        found = await self._training_sets.get(str(parts["project"]), str(parts["id"]))
        if found is None:
            raise UnknownTrainingSet(f"{request.name} does not exist: look it up with ListTrainingSets.")
        return pb.GetTrainingSetResponse(training_set=convert_training_sets.training_set_to_proto(found))

    async def ListTrainingSets(
        self, request: pb.ListTrainingSetsRequest, context: Any
    ) -> pb.ListTrainingSetsResponse:
        query = f"{request.parent}\n{request.filter}"
        after = decode_token(request.page_token, query=query)
        size = page_size(request.page_size, default=100)
        key, _, feature_set = request.filter.partition("=")
        if request.filter and key != "feature_set":
            raise InvalidFilter(
                f"{request.filter[:100]!r} is not a filter of training sets: use feature_set=NAME."
            )
        before = (datetime.fromisoformat(str(after[0])), str(after[1])) if after else None
        found = await self._training_sets.list(
            parse_project(request.parent), feature_set=feature_set, before=before, limit=size + 1
        )
        last = found[size - 1] if len(found) > size else None
        more = encode_token([last.created_at.isoformat(), last.id], query=query) if last is not None else ""
        return pb.ListTrainingSetsResponse(
            training_sets=map(convert_training_sets.training_set_to_proto, found[:size]), next_page_token=more
        )

    async def CheckSkew(self, request: pb.CheckSkewRequest, context: Any) -> pb.CheckSkewResponse:
        wanted = convert_training_sets.skew_request(request)
        stored = pb.CheckSkewRequest()
        stored.CopyFrom(request)
        stored.request_id = ""
        job = await self._jobs.submit(
            SKEW_JOB, stored.SerializeToString(deterministic=True), request.request_id, project=wanted.project
        )
        return pb.CheckSkewResponse(job=convert_jobs.job_to_proto(job))
