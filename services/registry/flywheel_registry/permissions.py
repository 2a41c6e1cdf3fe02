"""Which roles may call which method, and what needs more than the method's own roles.

The tables apply in JWT mode; a method without a row is denied.
"""

from __future__ import annotations

from collections.abc import Mapping

from flywheel_common.grpc.auth import OPERATE, READ, WRITE, Permission, Permissions

SERVICE = "flywheel.registry.v1.RegistryService"

OVERRIDE_GATE = "PromoteModelVersion with `override` (although a gate failed, or past a champion)"
PROMOTE_TO_PRODUCTION = "PromoteModelVersion to PRODUCTION"
CHANGE_POLICY = "UpdateModel of `gate_policy` or `rollout_policy`"

REQUEST_PERMISSIONS: Mapping[str, Permission] = {
    OVERRIDE_GATE: OPERATE,
    PROMOTE_TO_PRODUCTION: OPERATE,
    CHANGE_POLICY: OPERATE,
}
"""What a request asks for → the roles of which its caller needs one, beside those of the method. Checked
after parsing and before any effect."""

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
