"""Which roles may call which method, and which may override a gate.

The table applies in JWT mode; a method without a row is denied.
"""

from __future__ import annotations

from flywheel_common.grpc.auth import OPERATE, READ, WRITE, Permission, Permissions

SERVICE = "flywheel.registry.v1.RegistryService"

OVERRIDE_GATE: Permission = OPERATE
"""PromoteModelVersion with `override`: promotion although a gate failed, or past a champion."""

_METHODS: dict[Permission, tuple[str, ...]] = {
    READ: (
        "GetModel",
        "ListModels",
        "GetModelVersion",
        "ListModelVersions",
        "ListFeatureUses",
        "DownloadArtifact",
        "GetRelease",
        "ListReleases",
        "GetRollout",
        "ListRollouts",
        "ListServingHistory",
        "GetEvidence",
        "ListAuditEntries",
        "ListGateways",
    ),
    WRITE: (
        "CreateModel",
        "UpdateModel",
        "CreateModelVersion",
        "UploadArtifact",
        "PromoteModelVersion",
        "CreateRelease",
    ),
    OPERATE: (
        "RejectModelVersion",
        "StartRollout",
        "PauseRollout",
        "ResumeRollout",
        "AbortRollout",
        "SkipRolloutStep",
        "RollbackModel",
        "WatchServing",
        "ReportServing",
    ),
}

PERMISSIONS: Permissions = {
    f"/{SERVICE}/{method}": permission for permission, methods in _METHODS.items() for method in methods
}
"""Full method → the roles of which a caller needs one."""
