"""FeatureService at the gRPC edge: each method converts, awaits a use case and converts back."""

from __future__ import annotations

from typing import Any

from flywheel_common.clock import Clock
from flywheel_common.granted.access import ObjectAccess
from flywheel_common.grpc.object_methods import ObjectMethods
from flywheel_common.ids import Ids
from flywheel_common.names import parse_project
from flywheel_common.postgres.idempotency import Idempotency
from flywheel_feature.api import convert_online
from flywheel_feature.api.convert_definitions import FEATURE_SET, FEATURE_SET_VERSION, versioned_name
from flywheel_feature.api.definition_methods import DefinitionMethods
from flywheel_feature.api.errors import InvalidRequest
from flywheel_feature.api.job_methods import JobMethods
from flywheel_feature.api.training_set_methods import TrainingSetMethods
from flywheel_feature.api.write_methods import WriteMethods
from flywheel_feature.apply.applied import AppliedDefinitions
from flywheel_feature.apply.lineage import Models
from flywheel_feature.ingest.freshness import FreshnessReader
from flywheel_feature.ingest.materialize_job import MaterializeJob
from flywheel_feature.ingest.push import Pusher
from flywheel_feature.jobs.runner import JobRunner
from flywheel_feature.offline.build import TrainingSetBuilder
from flywheel_feature.offline.ports import TrainingSets
from flywheel_feature.online.features import OnlineFeatures
from flywheel_feature.online.lookup import SharedRead
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.feature.v1 import feature_pb2_grpc, object_access_pb2


def add_to_server(servicer: FeatureServicer, server: Any) -> None:
    """Register the servicer; GetOnlineFeatures may return bytes that are serialized already."""
    feature_pb2_grpc.add_FeatureServiceServicer_to_server(servicer, _SerializedAnswers(server))


class _SerializedAnswers:
    """A gRPC server that sends the bytes of GetOnlineFeatures unchanged."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        lookup = handlers["GetOnlineFeatures"]._replace(response_serializer=_serialized)
        self._server.add_registered_method_handlers(service, {**handlers, "GetOnlineFeatures": lookup})


def _serialized(answer: pb.GetOnlineFeaturesResponse | bytes) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


class FeatureServicer(
    DefinitionMethods,
    WriteMethods,
    TrainingSetMethods,
    JobMethods,
    ObjectMethods,
    feature_pb2_grpc.FeatureServiceServicer,
):
    """All methods: online reads here, the others in the mixins."""

    _sign_response = object_access_pb2.SignObjectRequestsResponse

    def __init__(
        self,
        *,
        definitions: AppliedDefinitions,
        models: Models,
        idempotency: Idempotency,
        online: OnlineFeatures,
        tensors: OnlineFeatures,
        freshness: FreshnessReader,
        pushing: Pusher,
        materializing: MaterializeJob,
        builder: TrainingSetBuilder,
        training_sets: TrainingSets,
        jobs: JobRunner,
        object_access: ObjectAccess,
        clock: Clock,
        ids: Ids,
    ) -> None:
        self._definitions = definitions
        self._models = models
        self._idempotency = idempotency
        self._online = online
        self._tensors = tensors
        self._freshness = freshness
        self._pushing = pushing
        self._materializing = materializing
        self._builder = builder
        self._training_sets = training_sets
        self._jobs = jobs
        self._object_access = object_access
        self._clock = clock
        self._ids = ids

    async def GetOnlineFeatures(
        self, request: pb.GetOnlineFeaturesRequest, context: Any
    ) -> pb.GetOnlineFeaturesResponse | bytes:
        reads = self._tensors if request.layout == pb.ANSWER_LAYOUT_TENSOR else self._online
        shared = reads.recent(request.feature_set)
        if shared is None or request.features:
            shared = await _shared_read(reads, request)
        lookup = convert_online.to_lookup(request, shared.plan)
        if request.layout == pb.ANSWER_LAYOUT_ROWS:
            return convert_online.answer_to_proto(await shared.answer(lookup), shared.plan, request.layout)
        return await shared.read(lookup)

    async def GetFreshness(self, request: pb.GetFreshnessRequest, context: Any) -> pb.GetFreshnessResponse:
        catalog = self._definitions.catalog(parse_project(request.parent))
        freshness = map(convert_online.freshness_to_proto, await self._freshness.read(catalog))
        return pb.GetFreshnessResponse(freshness=freshness)


async def _shared_read(reads: OnlineFeatures, request: pb.GetOnlineFeaturesRequest) -> SharedRead:
    if not request.feature_set:
        return await reads.of_features(parse_project(request.parent), tuple(request.features))
    if request.features:
        raise InvalidRequest("Set feature_set or features, not both.", field="features")
    name = versioned_name(request.feature_set, FEATURE_SET, FEATURE_SET_VERSION)
    shared = await reads.of_set(*name)
    reads.remember(request.feature_set, shared)
    return shared
