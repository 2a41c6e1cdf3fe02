"""Stand-ins for the feature service and the registry that speak their API to the trainer."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc

from flywheel_common.errors import FlywheelError, NotFound
from flywheel_common.grpc.channel import channel
from flywheel_common.grpc.error_details import trailing_metadata
from flywheel_common.postgres.errors import RequestIdReused
from flywheel_protos.feature.v1 import definitions_pb2, feature_pb2, feature_pb2_grpc, training_set_pb2
from flywheel_protos.registry.v1 import model_pb2, registry_pb2, registry_pb2_grpc
from flywheel_protos.types.v1 import job_pb2, value_pb2
from flywheel_trainer.fakes.requests import MemoryRequests
from flywheel_trainer.jobs.errors import DigestMismatch, UnknownJob
from flywheel_trainer.pipelines.errors import RejectedVersion

MODEL = "projects/default/models/late"
FEATURE_SET = "projects/default/featureSets/late/versions/1"
TRAINING_SET = "projects/default/trainingSets/one"
BUILD_JOB = "projects/default/jobs/build-1"
LINEAGE = (
    ("projects/default/views/v/versions/2", FEATURE_SET),
    ("projects/default/sources/landed", "projects/default/views/v/versions/2"),
)
COLUMNS = {
    "v__x": value_pb2.DATA_TYPE_FLOAT64,
    "v__z": value_pb2.DATA_TYPE_FLOAT64,
    "v__c": value_pb2.DATA_TYPE_STRING,
    "v__b": value_pb2.DATA_TYPE_BOOL,
}


def landed_spine(label: str = "delay > 15") -> training_set_pb2.Spine:
    """The landed flights of three months."""
    return training_set_pb2.Spine(
        source=training_set_pb2.SourceSpine(
            source="projects/default/sources/landed",
            timestamp_field="scheduled",
            label=label,
            start_time=Timestamp(seconds=1_357_000_000),
            end_time=Timestamp(seconds=1_365_000_000),
        )
    )


@dataclass
class Requests:
    """Requests that the peers received: `effects` counts each request id once, `calls` counts every call."""

    calls: Counter[str] = field(default_factory=Counter)
    effects: Counter[str] = field(default_factory=Counter)
    conflicts: list[str] = field(default_factory=list)
    """Request ids that were used with different bodies."""
    results: MemoryRequests = field(default_factory=MemoryRequests)
    hold: str = ""
    """Method whose calls get no answer, after their effect."""
    held: int = 0
    """Number of calls without an answer."""

    async def wait_if_held(self, method: str) -> None:
        if method == self.hold:
            self.held += 1
            await asyncio.Event().wait()

    async def once(self, method: str, request: Any, context: Any, effect: Callable[[], Any]) -> Any:
        """The first response for a request id; aborts the call if its body differs."""
        self.calls[method] += 1

        def counted() -> Any:
            self.effects[method] += 1
            return effect()

        body = request.SerializeToString(deterministic=True)
        try:
            answer = self.results.once(method, request.request_id, body, counted)
            await self.wait_if_held(method)
            return answer
        except RequestIdReused as error:
            self.conflicts.append(f"{method} {request.request_id}")
            await abort(context, error)


class FeatureServer(feature_pb2_grpc.FeatureServiceServicer):
    """A feature service with one training set.

    The job that builds it is RUNNING for the first `running_reads` reads, and then ends in `failure` (reason,
    message) if it is set.
    """

    def __init__(self, uri: str, rows: int = 7, requests: Requests | None = None) -> None:
        self.uri, self.rows, self.requests = uri, rows, requests or Requests()
        self.running_reads = 2
        self.failure: tuple[str, str] | None = None
        self.mode, self.short = training_set_pb2.JOIN_MODE_POINT_IN_TIME, False
        self.build_requests: list[feature_pb2.BuildTrainingSetRequest] = []
        self.further_sets: dict[str, training_set_pb2.TrainingSet] = {}

    async def BuildTrainingSet(self, request: Any, context: Any) -> feature_pb2.BuildTrainingSetResponse:
        await check_known(request.feature_set, {FEATURE_SET: None}, context)
        self.build_requests.append(request)
        job = feature_pb2.Job(name=BUILD_JOB, state=job_pb2.JOB_STATE_QUEUED)
        return await self.requests.once(
            "BuildTrainingSet", request, context, lambda: feature_pb2.BuildTrainingSetResponse(job=job)
        )

    async def GetJob(self, request: Any, context: Any) -> feature_pb2.GetJobResponse:
        if request.name != BUILD_JOB:
            await abort(context, UnknownJob.of(request.name))
        self.requests.calls["GetJob"] += 1
        done = self.requests.calls["GetJob"] > self.running_reads
        if done and self.failure is not None:
            reason, message = self.failure
            failed = feature_pb2.Job(
                name=BUILD_JOB, state=job_pb2.JOB_STATE_FAILED, error_reason=reason, error_message=message
            )
            return feature_pb2.GetJobResponse(job=failed)
        state = job_pb2.JOB_STATE_SUCCEEDED if done else job_pb2.JOB_STATE_RUNNING
        return feature_pb2.GetJobResponse(
            job=feature_pb2.Job(name=request.name, state=state, training_set=TRAINING_SET if done else "")
        )

    async def GetFeatureSet(self, request: Any, context: Any) -> feature_pb2.GetFeatureSetResponse:
        await check_known(request.name, {FEATURE_SET: None}, context)
        keys = [value_pb2.Field(name="carrier", data_type=value_pb2.DATA_TYPE_STRING)]
        found = definitions_pb2.FeatureSet(name=request.name, version=1, join_keys=keys)
        return feature_pb2.GetFeatureSetResponse(feature_set=found)

    async def GetTrainingSet(self, request: Any, context: Any) -> feature_pb2.GetTrainingSetResponse:
        if request.name in self.further_sets:
            found = self.further_sets[request.name]
            return feature_pb2.GetTrainingSetResponse(training_set=found)
        if request.name != TRAINING_SET:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such set")
        schema = [
            value_pb2.Field(name="carrier", data_type=value_pb2.DATA_TYPE_STRING),
            value_pb2.Field(name="event_timestamp", data_type=value_pb2.DATA_TYPE_TIMESTAMP),
            value_pb2.Field(name="order__weight", data_type=value_pb2.DATA_TYPE_FLOAT64),
            *(value_pb2.Field(name=n, data_type=t) for n, t in COLUMNS.items()),
            value_pb2.Field(name="label", data_type=value_pb2.DATA_TYPE_INT64),
        ]
        training_set = training_set_pb2.TrainingSet(
            name=TRAINING_SET,
            feature_set=FEATURE_SET,
            uri=self.uri,
            row_count=self.rows,
            schema=schema,
            content_hash="f" * 64,
            mode=self.mode,
            short_feature_names=self.short,
            extra_columns=["order__weight"],
            profile=[
                training_set_pb2.ColumnProfile(name="v__x"),
                training_set_pb2.ColumnProfile(name="v__z"),
                training_set_pb2.ColumnProfile(name="v__c", categories=["AA", "BB"], other_count=0),
                training_set_pb2.ColumnProfile(name="v__b", categories=["true"], other_count=3),
                training_set_pb2.ColumnProfile(name="label"),
            ],
        )
        return feature_pb2.GetTrainingSetResponse(training_set=training_set)

    async def GetLineage(self, request: Any, context: Any) -> feature_pb2.GetLineageResponse:
        await check_known(request.name, {FEATURE_SET: None}, context)
        edges = [feature_pb2.LineageEdge(read=read, reader=reader) for read, reader in LINEAGE]
        return feature_pb2.GetLineageResponse(upstream=edges)


class RegistryServer(registry_pb2_grpc.RegistryServiceServicer):
    """A registry with one model, whose first rollout is promoted at once and whose later ones start in
    shadow."""

    def __init__(self, requests: Requests | None = None) -> None:
        self.requests = requests or Requests()
        self.versions: dict[str, model_pb2.ModelVersion] = {}
        self.releases: dict[str, model_pb2.Release] = {}
        self.files: dict[tuple[str, str], bytes] = {}
        self.evidence: list[model_pb2.Evidence] = []
        self.evaluations: list[registry_pb2.RecordEvaluationRequest] = []
        self.production = ""
        self.rejected: set[str] = set()
        self.gate_passes = True

    async def GetModel(self, request: Any, context: Any) -> registry_pb2.GetModelResponse:
        await check_known(request.name, {MODEL: None}, context)
        await self.requests.wait_if_held("GetModel")
        return registry_pb2.GetModelResponse(
            model=model_pb2.Model(name=request.name, production_release=self.production)
        )

    async def GetRelease(self, request: Any, context: Any) -> registry_pb2.GetReleaseResponse:
        await check_known(request.name, self.releases, context)
        return registry_pb2.GetReleaseResponse(release=self.releases[request.name])

    async def GetModelVersion(self, request: Any, context: Any) -> registry_pb2.GetModelVersionResponse:
        await check_known(request.name, self.versions, context)
        return registry_pb2.GetModelVersionResponse(model_version=self.versions[request.name])

    def add_version(self, files: dict[str, bytes], **fields: Any) -> str:
        """Add a version with these files, and return its name."""
        name = f"{MODEL}/versions/{len(self.versions) + 1}"
        artifacts = [
            model_pb2.Artifact(name=one, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            for one, content in files.items()
        ]
        self.versions[name] = model_pb2.ModelVersion(name=name, artifacts=artifacts, **fields)
        self.files |= {(name, one): content for one, content in files.items()}
        return name

    async def CreateModelVersion(self, request: Any, context: Any) -> registry_pb2.CreateModelVersionResponse:
        await check_known(request.parent, {MODEL: None}, context)

        def create() -> registry_pb2.CreateModelVersionResponse:
            version = model_pb2.ModelVersion()
            version.CopyFrom(request.model_version)
            version.name = f"{request.parent}/versions/{len(self.versions) + 1}"
            self.versions[version.name] = version
            return registry_pb2.CreateModelVersionResponse(model_version=version)

        return await self.requests.once("CreateModelVersion", request, context, create)

    async def UploadArtifact(self, requests: Any, context: Any) -> registry_pb2.UploadArtifactResponse:
        target, content = None, io.BytesIO()
        async for part in requests:
            if part.HasField("target"):
                target = part.target
            else:
                content.write(part.data)
        assert target is not None
        await check_known(target.model_version, self.versions, context)
        declared = {a.name: a.sha256 for a in self.versions[target.model_version].artifacts}
        if hashlib.sha256(content.getvalue()).hexdigest() != declared[target.artifact]:
            await abort(context, DigestMismatch("The bytes do not match the declared digest."))
        self.files[target.model_version, target.artifact] = content.getvalue()
        return registry_pb2.UploadArtifactResponse(model_version=self.versions[target.model_version])

    async def DownloadArtifact(
        self, request: Any, context: Any
    ) -> AsyncIterator[registry_pb2.DownloadArtifactResponse]:
        await check_known((request.model_version, request.artifact), self.files, context)
        content = self.files[request.model_version, request.artifact]
        for start in range(0, len(content), 10_000):
            yield registry_pb2.DownloadArtifactResponse(data=content[start : start + 10_000])

    async def PromoteModelVersion(
        self, request: Any, context: Any
    ) -> registry_pb2.PromoteModelVersionResponse:
        await check_known(request.name, self.versions, context)

        def promote() -> registry_pb2.PromoteModelVersionResponse:
            self.evidence.append(request.evidence)
            if not self.gate_passes:
                self.rejected.add(request.name)
            findings = ["auc 0.8 >= 0.7"] if self.gate_passes else ["auc 0.8 < 0.99"]
            return registry_pb2.PromoteModelVersionResponse(
                passed=self.gate_passes,
                evidence=model_pb2.Evidence(findings=findings, passed=self.gate_passes),
            )

        return await self.requests.once("PromoteModelVersion", request, context, promote)

    async def RecordEvaluation(self, request: Any, context: Any) -> registry_pb2.RecordEvaluationResponse:
        await check_known(request.name, self.versions, context)

        def record() -> registry_pb2.RecordEvaluationResponse:
            self.evaluations.append(request)
            name = f"{request.name.partition('/versions/')[0]}/evidence/{len(self.evaluations)}"
            return registry_pb2.RecordEvaluationResponse(evidence=model_pb2.Evidence(name=name))

        return await self.requests.once("RecordEvaluation", request, context, record)

    async def CreateRelease(self, request: Any, context: Any) -> registry_pb2.CreateReleaseResponse:
        await check_known(request.release.model_version, self.versions, context)
        if request.release.model_version in self.rejected:
            rejected = f"{request.release.model_version} was rejected by the offline gate."
            await abort(context, RejectedVersion(rejected))

        def create() -> registry_pb2.CreateReleaseResponse:
            release = model_pb2.Release()
            release.CopyFrom(request.release)
            release.name = f"{request.parent}/releases/{len(self.releases) + 1}"
            self.releases[release.name] = release
            return registry_pb2.CreateReleaseResponse(release=release)

        return await self.requests.once("CreateRelease", request, context, create)

    async def StartRollout(self, request: Any, context: Any) -> registry_pb2.StartRolloutResponse:
        await check_known(request.challenger_release, self.releases, context)

        def start() -> registry_pb2.StartRolloutResponse:
            state = model_pb2.ROLLOUT_STATE_PENDING_LOAD
            self.production = self.production or request.challenger_release
            number = self.requests.effects["StartRollout"]
            rollout = model_pb2.Rollout(name=f"{request.parent}/rollouts/{number}", state=state)
            return registry_pb2.StartRolloutResponse(rollout=rollout)

        return await self.requests.once("StartRollout", request, context, start)


class HealthServer(health_pb2_grpc.HealthServicer):
    """Answers SERVING."""

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        await asyncio.Event().wait()


@dataclass
class Peers:
    """Feature service and registry in one server at `address`."""

    address: str
    feature: FeatureServer
    registry: RegistryServer
    requests: Requests


async def serve_peers(stack: AsyncExitStack, uri: str, rows: int) -> Peers:
    """Both peers; the rows of the training set are at `uri`."""
    requests = Requests()
    feature, registry = FeatureServer(uri, rows, requests), RegistryServer(requests)
    server = grpc.aio.server()
    feature_pb2_grpc.add_FeatureServiceServicer_to_server(feature, server)
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(registry, server)
    health_pb2_grpc.add_HealthServicer_to_server(HealthServer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, 0.5)
    return Peers(f"127.0.0.1:{port}", feature, registry, requests)


async def serve(
    stack: AsyncExitStack, add: Callable[[Any, Any], None], servicer: Any
) -> tuple[grpc.aio.Channel, Callable[[], Awaitable[None]]]:
    """A channel to one servicer, and a function that stops its server."""
    server = grpc.aio.server()
    add(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    stack.push_async_callback(server.stop, None)
    connection = channel(address, client_name="tests", health_check=False, retries=False)
    return await stack.enter_async_context(connection), lambda: server.stop(None)


async def check_known(name: object, known: Mapping[Any, object], context: Any) -> None:
    """Abort the call with NOT_FOUND if the name is unknown."""
    if name not in known:
        await abort(context, NotFound(f"{name} does not exist."))


async def abort(context: Any, error: FlywheelError) -> None:
    """End the call with the status of a domain error, as the edge of a service does."""
    await context.abort(error.code, error.message, trailing_metadata(error))
