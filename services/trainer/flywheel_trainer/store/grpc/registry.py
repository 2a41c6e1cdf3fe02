"""Client of the registry."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict

from flywheel_common.deadline import call_timeout
from flywheel_common.errors import FlywheelError
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.signature import FLOAT32, INPUT, SCORE, OutputSpec, Signature
from flywheel_common.signature_messages import signature_message, to_message
from flywheel_common.tensors import Tensor
from flywheel_protos.registry.v1 import model_pb2, registry_pb2, registry_pb2_grpc
from flywheel_trainer.jobs.errors import DigestMismatch
from flywheel_trainer.pipelines.ports import Champion, VersionOrigin
from flywheel_trainer.store.grpc.calls import response_of

PEER = "registry"
CHUNK_BYTES = 512 * 1024
UPLOAD_SECONDS = 300.0


class GrpcRegistry:
    """`RegistryPeer` over the gRPC stub."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = registry_pb2_grpc.RegistryServiceStub(channel)

    async def champion(self, model: str) -> Champion | None:
        release = await self.production_release(model)
        if release is None:
            return None
        return Champion(release.model_version, release.name)

    async def origin(self, version: str) -> VersionOrigin:
        found = await self.version(version)
        return VersionOrigin(
            found.training_run, found.training_dataset, found.pipeline_run, found.parent_version
        )

    async def production_release(self, model: str) -> model_pb2.Release | None:
        """The release that production serves. Raises NotFound."""
        found = (await response_of(PEER, self._stub.GetModel(registry_pb2.GetModelRequest(name=model)))).model
        if not found.production_release:
            return None
        request = registry_pb2.GetReleaseRequest(name=found.production_release)
        return (await response_of(PEER, self._stub.GetRelease(request))).release

    async def version(self, name: str) -> model_pb2.ModelVersion:
        """Raises NotFound."""
        request = registry_pb2.GetModelVersionRequest(name=name)
        return (await response_of(PEER, self._stub.GetModelVersion(request))).model_version

    async def download(self, version: model_pb2.ModelVersion, artifact: str) -> bytes:
        """The bytes of a small file. Raises DigestMismatch, NotFound."""
        return b"".join([piece async for piece in self.stream(version, artifact)])

    async def stream(self, version: model_pb2.ModelVersion, artifact: str) -> AsyncIterator[bytes]:
        """A file in pieces. Raises NotFound, and DigestMismatch after the last piece."""
        request = registry_pb2.DownloadArtifactRequest(model_version=version.name, artifact=artifact)
        call = self._stub.DownloadArtifact(request, timeout=call_timeout(UPLOAD_SECONDS))
        found = hashlib.sha256()
        try:
            async for part in call:
                found.update(part.data)
                yield part.data
        except grpc.RpcError as error:
            raise from_rpc_error(error, peer=PEER) from error
        finally:
            call.cancel()
        declared = next((a.sha256 for a in version.artifacts if a.name == artifact), None)
        if found.hexdigest() != declared:
            raise DigestMismatch(
                f"The downloaded bytes of {artifact} of {version.name} do not match their digest."
            )

    async def create_version(self, model: str, version: Mapping[str, Any], request_id: str) -> str:
        message = model_pb2.ModelVersion(
            training_run=version["training_run"],
            framework=version["framework"],
            metrics=version["metrics"],
            feature_set=version["feature_set"],
            training_dataset=version["training_dataset"],
            signature=model_pb2.Signature(
                inputs=[
                    model_pb2.SignatureInput(
                        name=i["name"],
                        data_type=f"DATA_TYPE_{i['data_type']}",
                        vocabulary=i["vocabulary"],
                    )
                    for i in version["inputs"]
                ],
                output=_output(version["output"]),
            ),
            artifacts=[
                model_pb2.Artifact(name=n, size_bytes=s, sha256=d) for n, s, d in version["artifacts"]
            ],
            golden_rows=_golden_rows(version),
            parent_version=version["parent_version"],
            cause_alert=version["cause_alert"],
            pipeline_run=version["pipeline_run"],
            tags=version["tags"],
        )
        request = registry_pb2.CreateModelVersionRequest(
            parent=model, model_version=message, request_id=request_id
        )
        return str((await response_of(PEER, self._stub.CreateModelVersion(request))).model_version.name)

    async def upload(self, version: str, artifact: str, pieces: AsyncIterable[bytes]) -> None:
        unreadable: FlywheelError | None = None

        async def parts() -> AsyncIterator[registry_pb2.UploadArtifactRequest]:
            nonlocal unreadable
            target = registry_pb2.UploadArtifactRequest.Target(model_version=version, artifact=artifact)
            yield registry_pb2.UploadArtifactRequest(target=target)
            try:
                async for piece in pieces:
                    for start in range(0, len(piece), CHUNK_BYTES):
                        yield registry_pb2.UploadArtifactRequest(data=piece[start : start + CHUNK_BYTES])
            except FlywheelError as error:
                # gRPC would cancel the call. The registry refuses a file that ends too early.
                unreadable = error

        try:
            await response_of(PEER, self._stub.UploadArtifact(parts(), timeout=call_timeout(UPLOAD_SECONDS)))
        finally:
            if unreadable is not None:
                raise unreadable

    async def promote_to_staging(
        self, version: str, values: Mapping[str, float], findings: list[str], reason: str, request_id: str
    ) -> tuple[bool, list[str]]:
        request = registry_pb2.PromoteModelVersionRequest(
            name=version,
            to_stage=model_pb2.STAGE_STAGING,
            reason=reason,
            evidence=model_pb2.Evidence(
                kind="OFFLINE", model_version=version, values=values, findings=findings
            ),
            request_id=request_id,
        )
        promoted = await response_of(PEER, self._stub.PromoteModelVersion(request))
        return promoted.passed, list(promoted.evidence.findings)

    async def record(
        self, version: str, values: Mapping[str, float], champion: str, findings: list[str], request_id: str
    ) -> str:
        """`Evaluations.record`."""
        request = registry_pb2.RecordEvaluationRequest(
            name=version,
            values=values,
            champion_version=champion,
            findings=findings,
            request_id=request_id,
        )
        return str((await response_of(PEER, self._stub.RecordEvaluation(request))).evidence.name)

    async def create_release(self, model: str, release: Mapping[str, Any], request_id: str) -> str:
        message = model_pb2.Release(
            model_version=release["model_version"],
            feature_set=release["feature_set"],
            threshold=release["threshold"] or 0.0,
            segment_keys=release["segment_keys"],
        )
        if release["calibration"]:
            ParseDict(dict(release["calibration"]), message.calibration)
        if release["fallback"] is not None:
            ParseDict(dict(release["fallback"]), message.fallback)
        request = registry_pb2.CreateReleaseRequest(parent=model, release=message, request_id=request_id)
        return str((await response_of(PEER, self._stub.CreateRelease(request))).release.name)

    async def start_rollout(self, model: str, release: str, reason: str, request_id: str) -> tuple[str, str]:
        request = registry_pb2.StartRolloutRequest(
            parent=model, challenger_release=release, reason=reason, request_id=request_id
        )
        rollout = (await response_of(PEER, self._stub.StartRollout(request))).rollout
        state = model_pb2.RolloutState.Name(rollout.state).removeprefix("ROLLOUT_STATE_")
        return rollout.name, f"{state} {rollout.reason}".strip()


def _golden_rows(version: Mapping[str, Any]) -> model_pb2.GoldenRows:
    """The float32 rows and scores of a report as the tensors of the plain signature."""
    rows, width = version["golden_rows"], version["output"].width
    inputs = Tensor(INPUT, FLOAT32, (rows, len(version["inputs"])), version["golden_inputs"])
    shape = (rows,) if width == 1 else (rows, width)
    scores = Tensor(SCORE, FLOAT32, shape, version["golden_scores"])
    return model_pb2.GoldenRows(row_count=rows, tensors=[to_message(inputs)], output=to_message(scores))


def _output(output: OutputSpec) -> model_pb2.SignatureOutput | None:
    """None for the default: a repeated request then has the body that older versions sent."""
    return None if output == OutputSpec() else signature_message(Signature(output=output)).output
