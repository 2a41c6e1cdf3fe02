"""Which roles may call each method, and which requests need additional roles.

The tables apply in JWT mode; a method without a row is denied.
"""

from __future__ import annotations

from collections.abc import Mapping

from flywheel_common.grpc.auth import APPROVE, MEASURE, OPERATE, PROMOTE, READ, WRITE, Permission, Permissions

SERVICE = "flywheel.registry.v1.RegistryService"

OVERRIDE_GATE = "PromoteModelVersion with `override` (although a gate failed, or another champion serves)"
PROMOTE_TO_PRODUCTION = "PromoteModelVersion to PRODUCTION"
SEND_EVIDENCE = "PromoteModelVersion with `evidence.values`"
CHANGE_POLICY = "UpdateModel of `gate_policy` or `rollout_policy`"
CHANGE_PROTECTED_ALIAS = "SetModelAlias or DeleteModelAlias of a protected alias"

REQUEST_PERMISSIONS: Mapping[str, Permission] = {
    OVERRIDE_GATE: PROMOTE,
    PROMOTE_TO_PRODUCTION: PROMOTE,
    CHANGE_POLICY: PROMOTE,
    SEND_EVIDENCE: MEASURE,
    CHANGE_PROTECTED_ALIAS: PROMOTE,
}
"""Property of a request → roles: its caller needs one of them, in addition to a role of the method. Checked
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
        "GetModelAlias",
        "ListModelAliases",
        "SearchModelVersions",
        "GetLineage",
        "ListApprovals",
        "VerifyAudit",
    ),
    WRITE: (
        "CreateModel",
        "UpdateModel",
        "CreateModelVersion",
        "UploadArtifact",
        "CheckModelVersion",
        "PromoteModelVersion",
        "CreateRelease",
        "SetModelAlias",
        "DeleteModelAlias",
        "TagModelVersion",
        "GetArtifactUpload",
        "UploadArtifactPart",
        "CompleteArtifactUpload",
    ),
    PROMOTE: (
        "RejectModelVersion",
        "DeleteModelVersion",
        "StartRollout",
        "PauseRollout",
        "ResumeRollout",
        "AbortRollout",
        "SkipRolloutStep",
        "ConcludeRollout",
        "RollbackModel",
        "SetModelVariants",
        "RestoreModelVersion",
        "DeleteRelease",
        "RestoreRelease",
        "DeleteModel",
        "RestoreModel",
    ),
    MEASURE: ("RecordEvaluation",),
    OPERATE: (
        "WatchServing",
        "GetServingSpec",
        "ReportServing",
        "CollectArtifacts",
        "CreateWebhook",
        "DeleteWebhook",
        "ListWebhooks",
        "ListWebhookDeliveries",
    ),
    APPROVE: ("ApproveModelVersion",),
}

PERMISSIONS: Permissions = {
    f"/{SERVICE}/{method}": permission for permission, methods in _METHODS.items() for method in methods
}
"""Full method → the roles of which a caller needs one."""
