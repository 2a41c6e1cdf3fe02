"""Who may call what (jwt mode)."""

from __future__ import annotations

from flywheel_common.grpc.auth import OPERATE, READ, WRITE, Permission, Permissions

SERVICE = "flywheel.registry.v1.RegistryService"

_ROLES: dict[Permission, tuple[str, ...]] = {
    READ: (
        "GetModel", "ListModels", "GetModelVersion", "ListModelVersions", "ListFeatureUses", "DownloadArtifact", "GetRelease", "ListReleases", "GetRollout",
        "ListRollouts", "ListServingHistory", "GetEvidence", "ListAuditEntries", "ListGateways",
    ),
    WRITE: ("CreateModel", "UpdateModel", "CreateModelVersion", "UploadArtifact", "PromoteModelVersion", "CreateRelease"),
    OPERATE: (
        "RejectModelVersion", "StartRollout", "PauseRollout", "ResumeRollout", "AbortRollout", "SkipRolloutStep", "RollbackModel",
        "WatchServing", "ReportServing",
    ),
}  # fmt: skip

PERMISSIONS: Permissions = {
    f"/{SERVICE}/{method}": permission for permission, methods in _ROLES.items() for method in methods
}
