"""Servers that speak the feature service's and the registry's API to the trainer, and keep their answers by request id."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from flywheel_common.errors import DataLoss, FailedPrecondition, FlywheelError, InvalidArgument, NotFound
from flywheel_common.grpc.error_details import trailing_metadata
from flywheel_protos.feature.v1 import feature_pb2, feature_pb2_grpc, training_set_pb2
from flywheel_protos.registry.v1 import model_pb2, registry_pb2, registry_pb2_grpc
from flywheel_protos.types.v1 import job_pb2, value_pb2

MODEL = "projects/default/models/late"
FEATURE_SET = "projects/default/featureSets/late/versions/1"
TRAINING_SET = "projects/default/trainingSets/one"
BUILD = "projects/default/jobs/build-1"
COLUMNS = {
    "v__x": value_pb2.DATA_TYPE_FLOAT64,
    "v__z": value_pb2.DATA_TYPE_FLOAT64,
    "v__c": value_pb2.DATA_TYPE_STRING,
    "v__b": value_pb2.DATA_TYPE_BOOL,
}


async def refuse(context: Any, error: FlywheelError) -> None:
    """Ends the call as a service's own edge would."""
    await context.abort(error.code, error.message, trailing_metadata(error))


class Healthy(health_pb2_grpc.HealthServicer):
    """SERVING, as long as the server lives."""

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        await asyncio.Event().wait()


@dataclass
class Effects:
    """What peers did: an effect is counted when a request id is seen first, a call every time."""

    calls: Counter[str] = field(default_factory=Counter)
    effects: Counter[str] = field(default_factory=Counter)
    answers: dict[tuple[str, str], tuple[bytes, Any]] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)

    async def once(self, method: str, request: Any, context: Any, make: Callable[[], Any]) -> Any:
        """The first answer for a request id; another body under it is noted as a conflict, and refused."""
        self.calls[method] += 1
        body = request.SerializeToString(deterministic=True)
        key = (method, request.request_id)
        if not request.request_id:
            self.effects[method] += 1
            return make()
        if key not in self.answers:
            self.effects[method] += 1
            self.answers[key] = (body, make())
        elif self.answers[key][0] != body:
            self.conflicts.append(f"{method} {request.request_id}")
            reused = f"request_id {request.request_id!r} was used with another request body."
            await refuse(context, InvalidArgument(reused, reason="REQUEST_ID_REUSED"))
        return self.answers[key][1]


class FeaturePeer(feature_pb2_grpc.FeatureServiceServicer):
    """Answers one training set; building takes `looks` looks at the job, and ends in `failure` (reason, message) if there is one."""

    def __init__(self, uri: str, rows: int, effects: Effects) -> None:
        self.uri, self.rows, self.seen = uri, rows, effects
        self.looks = 2
        self.failure: tuple[str, str] | None = None
        self.mode, self.short = training_set_pb2.JOIN_MODE_POINT_IN_TIME, False
        self.spines: list[training_set_pb2.Spine] = []

    async def BuildTrainingSet(self, request: Any, context: Any) -> feature_pb2.BuildTrainingSetResponse:
        if request.feature_set != FEATURE_SET:
            unknown = f"{request.feature_set} does not exist."
            await refuse(context, NotFound(unknown, reason="UNKNOWN_NAME"))
        self.spines.append(request.spine)
        job = feature_pb2.Job(name=BUILD, state=job_pb2.JOB_STATE_QUEUED)
        return await self.seen.once(
            "BuildTrainingSet", request, context, lambda: feature_pb2.BuildTrainingSetResponse(job=job)
        )

    async def GetJob(self, request: Any, context: Any) -> feature_pb2.GetJobResponse:
        if request.name != BUILD:
            await refuse(context, NotFound(f"{request.name} does not exist.", reason="UNKNOWN_JOB"))
        self.seen.calls["GetJob"] += 1
        done = self.seen.calls["GetJob"] > self.looks
        if done and self.failure is not None:
            reason, message = self.failure
            failed = feature_pb2.Job(
                name=BUILD, state=job_pb2.JOB_STATE_FAILED, error_reason=reason, error_message=message
            )
            return feature_pb2.GetJobResponse(job=failed)
        state = job_pb2.JOB_STATE_SUCCEEDED if done else job_pb2.JOB_STATE_RUNNING
        return feature_pb2.GetJobResponse(
            job=feature_pb2.Job(name=request.name, state=state, training_set=TRAINING_SET if done else "")
        )

    async def GetTrainingSet(self, request: Any, context: Any) -> feature_pb2.GetTrainingSetResponse:
        if request.name != TRAINING_SET:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such set")
        schema = [
            value_pb2.Field(name="carrier", data_type=value_pb2.DATA_TYPE_STRING),
            value_pb2.Field(name="event_timestamp", data_type=value_pb2.DATA_TYPE_TIMESTAMP),
            *(value_pb2.Field(name=n, data_type=t) for n, t in COLUMNS.items()),
            value_pb2.Field(name="label", data_type=value_pb2.DATA_TYPE_INT64),
        ]
        return feature_pb2.GetTrainingSetResponse(
            training_set=training_set_pb2.TrainingSet(
                name=TRAINING_SET, feature_set=FEATURE_SET, uri=self.uri, row_count=self.rows, schema=schema,
                content_hash="f" * 64, mode=self.mode, short_feature_names=self.short,
                profile=[training_set_pb2.ColumnProfile(name=n) for n in (*COLUMNS, "label")],
            )
        )  # fmt: skip


class RegistryPeer(registry_pb2_grpc.RegistryServiceServicer):
    """Keeps what it is sent; the first version becomes the champion by its rollout."""

    def __init__(self, effects: Effects) -> None:
        self.seen = effects
        self.versions: dict[str, model_pb2.ModelVersion] = {}
        self.releases: dict[str, model_pb2.Release] = {}
        self.files: dict[tuple[str, str], bytes] = {}
        self.evidence: list[model_pb2.Evidence] = []
        self.production = ""
        self.rejected: set[str] = set()
        self.gate_passes = True

    async def _known(self, name: str, among: Mapping[str, Any], context: Any) -> None:
        if name not in among:
            await refuse(context, NotFound(f"{name} does not exist.", reason="UNKNOWN_NAME"))

    async def GetModel(self, request: Any, context: Any) -> registry_pb2.GetModelResponse:
        if request.name != MODEL:
            await refuse(context, NotFound(f"{request.name} does not exist.", reason="UNKNOWN_MODEL"))
        return registry_pb2.GetModelResponse(
            model=model_pb2.Model(name=request.name, production_release=self.production)
        )

    async def GetRelease(self, request: Any, context: Any) -> registry_pb2.GetReleaseResponse:
        return registry_pb2.GetReleaseResponse(release=self.releases[request.name])

    async def GetModelVersion(self, request: Any, context: Any) -> registry_pb2.GetModelVersionResponse:
        await self._known(request.name, self.versions, context)
        return registry_pb2.GetModelVersionResponse(model_version=self.versions[request.name])

    async def CreateModelVersion(self, request: Any, context: Any) -> registry_pb2.CreateModelVersionResponse:
        await self._known(request.parent, {MODEL: None}, context)

        def make() -> registry_pb2.CreateModelVersionResponse:
            version = model_pb2.ModelVersion()
            version.CopyFrom(request.model_version)
            version.name = f"{request.parent}/versions/{len(self.versions) + 1}"
            self.versions[version.name] = version
            return registry_pb2.CreateModelVersionResponse(model_version=version)

        return await self.seen.once("CreateModelVersion", request, context, make)

    async def UploadArtifact(self, requests: Any, context: Any) -> registry_pb2.UploadArtifactResponse:
        target, content = None, io.BytesIO()
        async for part in requests:
            if part.HasField("target"):
                target = part.target
            else:
                content.write(part.data)
        assert target is not None
        await self._known(target.model_version, self.versions, context)
        declared = {a.name: a.sha256 for a in self.versions[target.model_version].artifacts}
        if hashlib.sha256(content.getvalue()).hexdigest() != declared[target.artifact]:
            await refuse(context, DataLoss("Other bytes than declared.", reason="DIGEST_MISMATCH"))
        self.files[target.model_version, target.artifact] = content.getvalue()
        return registry_pb2.UploadArtifactResponse(model_version=self.versions[target.model_version])

    async def DownloadArtifact(
        self, request: Any, context: Any
    ) -> AsyncIterator[registry_pb2.DownloadArtifactResponse]:
        if (request.model_version, request.artifact) not in self.files:
            await refuse(context, NotFound(f"{request.artifact} is not there.", reason="UNKNOWN_NAME"))
        content = self.files[request.model_version, request.artifact]
        for start in range(0, len(content), 10_000):
            yield registry_pb2.DownloadArtifactResponse(data=content[start : start + 10_000])

    async def PromoteModelVersion(
        self, request: Any, context: Any
    ) -> registry_pb2.PromoteModelVersionResponse:
        await self._known(request.name, self.versions, context)

        def make() -> registry_pb2.PromoteModelVersionResponse:
            self.evidence.append(request.evidence)
            if not self.gate_passes:
                self.rejected.add(request.name)
            findings = ["auc 0.8 >= 0.7"] if self.gate_passes else ["auc 0.8 < 0.99"]
            return registry_pb2.PromoteModelVersionResponse(
                passed=self.gate_passes,
                evidence=model_pb2.Evidence(findings=findings, passed=self.gate_passes),
            )

        return await self.seen.once("PromoteModelVersion", request, context, make)

    async def CreateRelease(self, request: Any, context: Any) -> registry_pb2.CreateReleaseResponse:
        await self._known(request.release.model_version, self.versions, context)
        if request.release.model_version in self.rejected:
            refused = f"{request.release.model_version} was refused by its gate."
            await refuse(context, FailedPrecondition(refused, reason="REJECTED_VERSION"))

        def make() -> registry_pb2.CreateReleaseResponse:
            release = model_pb2.Release()
            release.CopyFrom(request.release)
            release.name = f"{request.parent}/releases/{len(self.releases) + 1}"
            self.releases[release.name] = release
            return registry_pb2.CreateReleaseResponse(release=release)

        return await self.seen.once("CreateRelease", request, context, make)

    async def StartRollout(self, request: Any, context: Any) -> registry_pb2.StartRolloutResponse:
        await self._known(request.challenger_release, self.releases, context)

        def make() -> registry_pb2.StartRolloutResponse:
            state = model_pb2.ROLLOUT_STATE_SHADOW if self.production else model_pb2.ROLLOUT_STATE_PROMOTED
            self.production = self.production or request.challenger_release
            number = self.seen.effects["StartRollout"]
            rollout = model_pb2.Rollout(name=f"{request.parent}/rollouts/{number}", state=state)
            return registry_pb2.StartRolloutResponse(rollout=rollout)

        return await self.seen.once("StartRollout", request, context, make)


@dataclass
class Peers:
    """The peers, where they listen, and what they did."""

    address: str
    feature: FeaturePeer
    registry: RegistryPeer
    effects: Effects
