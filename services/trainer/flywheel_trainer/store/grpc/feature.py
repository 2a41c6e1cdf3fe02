"""Client of the feature service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict

from flywheel_common.errors import NotFound
from flywheel_job.launch import LABEL, Column
from flywheel_protos.feature.v1 import feature_pb2, feature_pb2_grpc, training_set_pb2
from flywheel_protos.types.v1 import job_pb2, value_pb2
from flywheel_trainer.jobs.errors import ShortFeatureNames, UnknownTrainingSet
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.jobs.ports import TrainingSet
from flywheel_trainer.store.grpc.calls import response_of

PEER = "feature"


class GrpcFeature:
    """`FeaturePeer` over the gRPC stub."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = feature_pb2_grpc.FeatureServiceStub(channel)

    async def build(self, project: str, feature_set: str, spine: Mapping[str, Any], request_id: str) -> str:
        request = feature_pb2.BuildTrainingSetRequest(
            parent=f"projects/{project}",
            feature_set=feature_set,
            spine=ParseDict(dict(spine), training_set_pb2.Spine()),
            request_id=request_id,
        )
        return str((await response_of(PEER, self._stub.BuildTrainingSet(request))).job.name)

    async def job(self, name: str) -> tuple[JobState, str, str]:
        job = (await response_of(PEER, self._stub.GetJob(feature_pb2.GetJobRequest(name=name)))).job
        state = JobState(job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_"))
        error = f"{job.error_reason}: {job.error_message}" if job.error_reason else job.progress.message
        return state, job.training_set, error

    async def upstream(self, name: str) -> Sequence[tuple[str, str]]:
        request = feature_pb2.GetLineageRequest(name=name)
        found = await response_of(PEER, self._stub.GetLineage(request))
        return [(edge.read, edge.reader) for edge in found.upstream]

    async def get(self, name: str) -> TrainingSet:
        try:
            described = await response_of(
                PEER, self._stub.GetTrainingSet(feature_pb2.GetTrainingSetRequest(name=name))
            )
        except NotFound as error:
            raise UnknownTrainingSet.of(name) from error
        found = described.training_set
        if found.short_feature_names:
            raise ShortFeatureNames.of(name)
        extras = set(found.extra_columns)
        features = {column.name for column in found.profile} or {
            f.name for f in found.schema if "__" in f.name
        }
        features -= {LABEL, *extras}
        columns = [
            Column(f.name, value_pb2.DataType.Name(f.data_type).removeprefix("DATA_TYPE_"))
            for f in found.schema
        ]
        return TrainingSet(
            name=found.name,
            uri=found.uri,
            columns=tuple(c for c in columns if c.name in features),
            row_count=found.row_count,
            content_hash=found.content_hash,
            feature_set=found.feature_set,
            naive=found.mode == training_set_pb2.JOIN_MODE_NAIVE_LATEST,
            extra_columns=tuple(c for c in columns if c.name in extras),
            categories={
                column.name: tuple(column.categories)
                for column in found.profile
                if column.categories and not column.other_count
            },
        )
