"""For tests: a monitor that answers what it is told, the whole server in this process, and short ways through the API."""

from __future__ import annotations

import asyncio
import hashlib
import math
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from flywheel_common.grpc.channel import channel, from_rpc_error
from flywheel_common.grpc.server import Server
from flywheel_protos.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from flywheel_protos.registry.v1 import model_pb2, registry_pb2, registry_pb2_grpc
from flywheel_registry.config import RegistrySettings
from flywheel_registry.server import build

START = datetime(2013, 4, 1, tzinfo=UTC)


class FakeMonitor(monitor_pb2_grpc.MonitorServiceServicer, health_pb2_grpc.HealthServicer):
    """A real gRPC monitor whose comparisons a test sets by mode; it notes every question."""

    def __init__(self) -> None:
        self.answers: dict[int, monitor_pb2.CompareVariantsResponse] = {}
        self.asked: list[monitor_pb2.CompareVariantsRequest] = []
        self.address = ""

    async def CompareVariants(self, request: Any, context: Any) -> monitor_pb2.CompareVariantsResponse:
        self.asked.append(request)
        return self.answers.get(request.mode, monitor_pb2.CompareVariantsResponse())

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        while not context.cancelled():
            await asyncio.sleep(0.1)


def comparison(*, labelled: int = 1000, predictions: int = 2000, delta: float = -0.02, half: float = 0.01, days: float = 3.0,
               error_rate: float = 0.0) -> monitor_pb2.CompareVariantsResponse:  # fmt: skip
    """Evidence over `days` of event time, with delta ± half; infinite bounds below two labels, as the monitor answers."""
    half = half if labelled > 1 else math.inf
    answer = monitor_pb2.CompareVariantsResponse(
        champion=monitor_pb2.VariantStatistics(predictions=predictions, labelled=labelled, score_stddev=0.1),
        challenger=monitor_pb2.VariantStatistics(
            predictions=predictions, labelled=labelled, error_rate=error_rate, score_stddev=0.1
        ),
        labelled=labelled,
        log_loss_delta=delta,
        log_loss_delta_upper=delta + half,
        log_loss_delta_lower=delta - half,
    )
    answer.first_event.FromDatetime(START)
    answer.last_event.FromDatetime(START + timedelta(days=days))
    return answer


@asynccontextmanager
async def serving_monitor(port: int = 0) -> AsyncIterator[FakeMonitor]:
    """A FakeMonitor that listens; port 0 picks a free one."""
    fake, server = FakeMonitor(), grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    monitor_pb2_grpc.add_MonitorServiceServicer_to_server(fake, server)
    health_pb2_grpc.add_HealthServicer_to_server(fake, server)
    fake.address = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    await server.start()
    try:
        yield fake
    finally:
        await server.stop(0)


def settings_for_tests(**changes: Any) -> RegistrySettings:
    """A registry on a free port that leaves at once; a backend that `changes` do not name is one that does not answer."""
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "metrics_listen": "",
        "drain_seconds": 0.0,
        "grace_seconds": 0.2,
        "log_rpcs": False,
        "postgres_dsn": "postgresql://127.0.0.1:1/none",
        "kafka_bootstrap": "127.0.0.1:1",
        "s3_endpoint": "http://127.0.0.1:1",
        "s3_access_key": "none",
        "s3_secret_key": "none",
        "s3_bucket": "none",
        "monitor_address": "127.0.0.1:1",
        "tick_seconds": 0.05,
        "tick_lease_seconds": 1.0,
    }
    return RegistrySettings(**{**values, **changes})


@asynccontextmanager
async def running(settings: RegistrySettings) -> AsyncIterator[Any]:
    """The server with its background work, and a stub to it. Leaving is a clean stop."""
    async with AsyncExitStack() as stack, serving(await build(settings, stack)) as stub:
        yield stub


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Any]:
    """A stub to a server while it runs."""
    task = asyncio.create_task(server.run_until_signal())
    try:
        while server.port == 0 and not task.done():
            await asyncio.sleep(0.01)
        async with channel(f"127.0.0.1:{server.port}", client_name="tests", health_check=False) as peer:
            stub: Any = registry_pb2_grpc.RegistryServiceStub(peer)
            stub.address = f"127.0.0.1:{server.port}"
            stub.methods = server.methods
            yield stub
    finally:
        server.request_stop()
        await task


class Story:
    """Short ways to get a model, its versions and releases, by real calls."""

    def __init__(self, stub: Any, model: str = "late") -> None:
        self.stub = stub
        self.model = f"projects/default/models/{model}"

    async def create(self, **policy: Any) -> model_pb2.Model:
        model = model_pb2.Model(**policy)
        model_id = self.model.rsplit("/", 1)[1]
        return (
            await self.stub.CreateModel(
                registry_pb2.CreateModelRequest(parent="projects/default", model_id=model_id, model=model)
            )
        ).model

    async def version(
        self, content: bytes = b"onnx bytes", upload: bool = True, *, feature_set: str = "", **metrics: float
    ) -> model_pb2.ModelVersion:
        """A registered version with one uploaded file."""
        declared = model_pb2.ModelVersion(
            metrics=metrics or {"auc": 0.75, "rows": 1000},
            feature_set=feature_set,
            artifacts=[
                model_pb2.Artifact(
                    name="model.onnx", size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
                )
            ],
            signature=model_pb2.Signature(
                inputs=[model_pb2.SignatureInput(name="view__a", data_type="DATA_TYPE_FLOAT64")]
            ),
            golden_rows=model_pb2.GoldenRows(
                row_count=1, inputs=struct.pack("<f", 1.0), scores=struct.pack("<f", 0.5)
            ),
        )
        request = registry_pb2.CreateModelVersionRequest(parent=self.model, model_version=declared)
        version = (await self.stub.CreateModelVersion(request)).model_version
        return await self.upload(version.name, content) if upload else version

    async def upload(
        self,
        version: str,
        content: bytes,
        artifact: str = "model.onnx",
        chunk: int = 1 << 20,
        timeout: float | None = None,
    ) -> model_pb2.ModelVersion:
        def messages() -> Any:
            target = registry_pb2.UploadArtifactRequest.Target(model_version=version, artifact=artifact)
            yield registry_pb2.UploadArtifactRequest(target=target)
            for start in range(0, len(content), chunk):
                yield registry_pb2.UploadArtifactRequest(data=content[start : start + chunk])

        return (await self.stub.UploadArtifact(messages(), timeout=timeout)).model_version

    async def download(
        self, version: str, artifact: str = "model.onnx", timeout: float | None = None
    ) -> bytes:
        request = registry_pb2.DownloadArtifactRequest(model_version=version, artifact=artifact)
        return b"".join([part.data async for part in self.stub.DownloadArtifact(request, timeout=timeout)])

    async def promote(self, version: str, **fields: Any) -> registry_pb2.PromoteModelVersionResponse:
        return await self.stub.PromoteModelVersion(
            registry_pb2.PromoteModelVersionRequest(name=version, **fields)
        )

    async def stage(self, version: str) -> str:
        found = await self.stub.GetModelVersion(registry_pb2.GetModelVersionRequest(name=version))
        return model_pb2.Stage.Name(found.model_version.stage).removeprefix("STAGE_")

    async def release(self, version: str, **fields: Any) -> model_pb2.Release:
        release = model_pb2.Release(model_version=version, threshold=fields.pop("threshold", 0.5), **fields)
        return (
            await self.stub.CreateRelease(
                registry_pb2.CreateReleaseRequest(parent=self.model, release=release)
            )
        ).release

    async def staged(
        self, content: bytes = b"onnx bytes"
    ) -> tuple[model_pb2.ModelVersion, model_pb2.Release]:
        """A version in STAGING and its release."""
        version = await self.version(content)
        assert (await self.promote(version.name)).passed
        return version, await self.release(version.name)

    async def start(self, release: str, **fields: Any) -> model_pb2.Rollout:
        request = registry_pb2.StartRolloutRequest(parent=self.model, challenger_release=release, **fields)
        return (await self.stub.StartRollout(request)).rollout

    async def rollout(self, name: str) -> model_pb2.Rollout:
        return (await self.stub.GetRollout(registry_pb2.GetRolloutRequest(name=name))).rollout

    async def champion(self, content: bytes = b"first") -> tuple[model_pb2.ModelVersion, model_pb2.Release]:
        """The first release, serving."""
        version, release = await self.staged(content)
        await self.start(release.name)
        return version, release

    async def audit(self) -> list[model_pb2.AuditEntry]:
        """Oldest first."""
        found = await self.stub.ListAuditEntries(
            registry_pb2.ListAuditEntriesRequest(parent=self.model, page_size=1000)
        )
        return list(reversed(found.entries))


class Refusal:
    """What a call was refused with."""

    message = ""


@contextmanager
def refused(code: str, reason: str) -> Iterator[Refusal]:
    """The block must end with this status code and ErrorInfo reason."""
    seen = Refusal()
    try:
        yield seen
    except grpc.RpcError as error:
        mapped = from_rpc_error(error)
        seen.message = mapped.message
        assert (mapped.code.name, mapped.reason) == (code, reason), (
            f"{mapped.code.name} {mapped.reason}: {mapped.message}"
        )
    else:
        raise AssertionError(f"not refused with {code} {reason}")
