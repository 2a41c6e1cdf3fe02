"""Models, versions, releases and rollouts: built by calls to a registry, or as rows of its store."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import grpc
import numpy as np

from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.postgres.transactions import Store
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_registry.models.model import Model
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.releases.release import Release
from flywheel_registry.rollouts.ports import RolloutRecords
from tests.support.builders.onnx_models import constant_half, golden_rows

Result = TypeVar("Result")

MODEL, OTHER_MODEL = "projects/p/models/late", "projects/p/models/other"
CREATED_AT = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)


class ModelClient:
    """Calls about one model of the project `default`, with short defaults."""

    def __init__(self, stub: Any, model: str = "late") -> None:
        self.stub = stub
        self.model = f"projects/default/models/{model}"

    async def create(self, **fields: Any) -> model_pb2.Model:
        request = registry_pb2.CreateModelRequest(
            parent="projects/default",
            model_id=self.model.rsplit("/", 1)[1],
            model=model_pb2.Model(**fields),
        )
        return (await self.stub.CreateModel(request)).model

    async def version(
        self,
        content: bytes | None = None,
        upload: bool = True,
        *,
        feature_set: str = "",
        tags: dict[str, str] | None = None,
        **metrics: float,
    ) -> model_pb2.ModelVersion:
        """Register a version with one artifact, `model.onnx`, and upload it.

        Without `content` it is a model that passes the check.
        """
        content = constant_half() if content is None else content
        declared = model_pb2.ModelVersion(
            metrics=metrics or {"auc": 0.75, "rows": 1000},
            feature_set=feature_set,
            tags=tags,
            artifacts=[
                model_pb2.Artifact(
                    name="model.onnx", size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
                )
            ],
            signature=model_pb2.Signature(
                inputs=[model_pb2.SignatureInput(name="view__a", data_type="DATA_TYPE_FLOAT64")]
            ),
            golden_rows=golden_rows(np.ones((1, 1), np.float32), np.full(1, 0.5, np.float32)),
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
        request = registry_pb2.PromoteModelVersionRequest(name=version, **fields)
        return await self.stub.PromoteModelVersion(request)

    async def stage(self, version: str) -> str:
        """Return the version's stage without its prefix, as in `STAGING`."""
        found = await self.stub.GetModelVersion(registry_pb2.GetModelVersionRequest(name=version))
        return model_pb2.Stage.Name(found.model_version.stage).removeprefix("STAGE_")

    async def release(self, version: str, **fields: Any) -> model_pb2.Release:
        release = model_pb2.Release(model_version=version, **{"threshold": 0.5, **fields})
        request = registry_pb2.CreateReleaseRequest(parent=self.model, release=release)
        return (await self.stub.CreateRelease(request)).release

    async def staged(self, label: str = "") -> tuple[model_pb2.ModelVersion, model_pb2.Release]:
        """Return a version in STAGING and its release; `label` makes its file differ from others."""
        version = await self.version(constant_half(label))
        assert (await self.promote(version.name)).passed
        return version, await self.release(version.name)

    async def start(self, release: str, **fields: Any) -> model_pb2.Rollout:
        request = registry_pb2.StartRolloutRequest(parent=self.model, challenger_release=release, **fields)
        return (await self.stub.StartRollout(request)).rollout

    async def skip(self, rollout: str, reason: str = "no evidence in this test") -> model_pb2.Rollout:
        """Move a rollout to its next step without evidence; a first release is promoted.

        A gateway that has loaded the release reports meanwhile.
        """
        request = registry_pb2.SkipRolloutStepRequest(name=rollout, reason=reason)
        async with gateway_with(self.stub, (await self.rollout(rollout)).challenger_release):
            return (await self.stub.SkipRolloutStep(request)).rollout

    async def rollout(self, name: str) -> model_pb2.Rollout:
        return (await self.stub.GetRollout(registry_pb2.GetRolloutRequest(name=name))).rollout

    async def champion(self, label: str = "first") -> tuple[model_pb2.ModelVersion, model_pb2.Release]:
        """Return the model's first version and release, which serve."""
        version, release = await self.staged(label)
        rollout = await self.start(release.name)
        try:
            await self.skip(rollout.name)
        except grpc.RpcError as error:
            if from_rpc_error(error).reason != "ROLLOUT_ENDED":  # the ticker saw the gateway first
                raise
        return version, release

    async def audit(self) -> list[model_pb2.AuditEntry]:
        """Return up to 1000 audit entries, oldest first."""
        request = registry_pb2.ListAuditEntriesRequest(parent=self.model, page_size=1000)
        return list(reversed((await self.stub.ListAuditEntries(request)).entries))


@asynccontextmanager
async def gateway_with(stub: Any, release: str) -> AsyncIterator[None]:
    """A gateway that has loaded a release and reports until it leaves at the end."""
    model = release.partition("/releases/")[0]
    loaded = model_pb2.ObservedModel(model=model, generation=1, ready_releases=[release])
    report = registry_pb2.ReportServingRequest(gateway_id="gateway-with-release", models=[loaded])

    async def repeat() -> None:
        while True:
            await asyncio.sleep(0.2)
            await stub.ReportServing(report)

    await stub.ReportServing(report)
    repeated = asyncio.create_task(repeat())
    try:
        yield
    finally:
        repeated.cancel()
        with suppress(asyncio.CancelledError):
            await repeated
        await stub.ReportServing(
            registry_pb2.ReportServingRequest(gateway_id="gateway-with-release", leaving=True)
        )


def numbers(resources: Any) -> list[int]:
    """Return the numbers at the end of the names of numbered resources."""
    return [int(resource.name.rsplit("/", 1)[1]) for resource in resources]


async def in_transaction(
    store: Store[RolloutRecords], act: Callable[[RolloutRecords], Awaitable[Result]]
) -> Result:
    """Run `act` in one transaction and return its result."""
    async with store.transaction() as records:
        return await act(records)


async def add_model(
    store: Store[RolloutRecords],
    name: str = MODEL,
    versions: int = 1,
    template: ModelVersion | None = None,
) -> None:
    """Store a model with `versions` copies of `template`, each with a release."""
    template = template or ModelVersion(name, registered_at=CREATED_AT)
    async with store.transaction() as records:
        assert await records.add_model(Model(name, created_at=CREATED_AT))
        for _ in range(versions):
            version = await records.add_version(replace(template, model=name))
            await records.add_release(Release(name, version.number, created_at=CREATED_AT, created_by="ann"))
