"""Calls about the stages of versions and their releases."""

from __future__ import annotations

from typing import Literal

from flywheel.connection import request_id
from flywheel.release_serving import ReleaseServing
from flywheel.version_references import VersionReferences
from flywheel_protos.registry.v1 import model_pb2, registry_pb2

StageName = Literal["STAGING", "CANDIDATE", "PRODUCTION"]


class StageCalls(VersionReferences):
    """Calls of the registry about stages and releases. Versions are named as in `resolve_version`."""

    async def promote(
        self, version: str, *, to: StageName | None = None, reason: str = "", override: bool = False
    ) -> registry_pb2.PromoteModelVersionResponse:
        """Moves a version to the next stage, or to `to`, when the gates pass.

        Check `passed`: while it is false, the version stays and `evidence.findings` say which rules failed.
        `override` moves it although a gate fails; it needs a reason.
        """
        request = registry_pb2.PromoteModelVersionRequest(
            name=await self.resolve_version(version),
            to_stage=f"STAGE_{to or 'UNSPECIFIED'}",
            reason=reason,
            override=override,
            request_id=request_id(),
        )
        return await self.registry.PromoteModelVersion(request)

    async def reject(self, version: str, reason: str) -> model_pb2.ModelVersion:
        """Moves a version that does not serve to REJECTED, which is final."""
        request = registry_pb2.RejectModelVersionRequest(
            name=await self.resolve_version(version), reason=reason, request_id=request_id()
        )
        return (await self.registry.RejectModelVersion(request)).model_version

    async def release(
        self,
        version: str,
        release: model_pb2.Release | None = None,
        *,
        threshold: float = 0.5,
        serving: ReleaseServing | None = None,
    ) -> model_pb2.Release:
        """Creates a release of a version: `release` with its version filled in, else one with `threshold`.
        `serving` replaces how that release is served."""
        wanted = model_pb2.Release(threshold=threshold)
        if release is not None:
            wanted.CopyFrom(release)
        if serving is not None:
            serving.apply_to(wanted)
        wanted.model_version = await self.resolve_version(version)
        request = registry_pb2.CreateReleaseRequest(
            parent=wanted.model_version.rpartition("/versions/")[0], release=wanted, request_id=request_id()
        )
        return (await self.registry.CreateRelease(request)).release
