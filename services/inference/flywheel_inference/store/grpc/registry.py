"""The registry over gRPC: desired state in, observed state out, artifacts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import grpc

from flywheel_common.grpc.channel import from_rpc_error
from flywheel_inference.models.errors import WrongSize
from flywheel_inference.releases.release import ArtifactSpec
from flywheel_inference.serving.observed_state import ObservedModel
from flywheel_protos.registry.v1 import model_pb2, registry_pb2_grpc
from flywheel_protos.registry.v1 import registry_pb2 as pb


class GrpcRegistry:
    """`serving.ServingRegistry` and `models.ArtifactSource`. `project` empty: all projects."""

    def __init__(self, channel: grpc.aio.Channel, gateway_id: str, project: str) -> None:
        self._stub = registry_pb2_grpc.RegistryServiceStub(channel)
        self._gateway_id = gateway_id
        self._parent = f"projects/{project}" if project else ""

    async def watch(self) -> AsyncGenerator[bytes]:
        request = pb.WatchServingRequest(gateway_id=self._gateway_id, parent=self._parent)
        call = self._stub.WatchServing(request)
        try:
            async for response in call:
                yield response.SerializeToString()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        finally:
            call.cancel()

    async def spec(self, release: str, digest: str, timeout: float) -> bytes:
        request = pb.GetServingSpecRequest(release=release, digest=digest)
        try:
            return (await self._stub.GetServingSpec(request, timeout=timeout)).spec
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def report(self, models: Sequence[ObservedModel], timeout: float) -> None:
        observed = [to_observed(model) for model in models]
        await self._report(pb.ReportServingRequest(gateway_id=self._gateway_id, models=observed), timeout)

    async def leave(self, timeout: float) -> None:
        await self._report(pb.ReportServingRequest(gateway_id=self._gateway_id, leaving=True), timeout)

    async def _report(self, request: pb.ReportServingRequest, timeout: float) -> None:
        try:
            await self._stub.ReportServing(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def download(
        self, model_version: str, artifact: ArtifactSpec, timeout: float
    ) -> AsyncGenerator[bytes]:
        request = pb.DownloadArtifactRequest(model_version=model_version, artifact=artifact.name)
        size = 0
        call = self._stub.DownloadArtifact(request, timeout=timeout)
        try:
            async for part in call:
                size += len(part.data)
                if size > artifact.size_bytes:
                    raise WrongSize(
                        f"{artifact.name} of {model_version} is longer than the declared "
                        f"{artifact.size_bytes} bytes."
                    )
                yield part.data
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        finally:
            call.cancel()


def to_observed(model: ObservedModel) -> model_pb2.ObservedModel:
    return model_pb2.ObservedModel(
        model=model.model,
        generation=model.generation,
        ready_releases=model.ready_releases,
        failures=model.failures,
    )
