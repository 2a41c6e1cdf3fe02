"""Who may call what (jwt mode)."""

from __future__ import annotations

from flywheel_common.grpc.auth import OPERATE, READ, WRITE, Permission, Permissions

SERVICE = "flywheel.feature.v1.FeatureService"

_ROLES: dict[Permission, tuple[str, ...]] = {
    READ: (
        "GetEntity", "ListEntities", "GetSource", "ListSources", "GetView", "ListViews", "GetFeatureSet", "ListFeatureSets",
        "GetOnlineFeatures", "GetTrainingSet", "ListTrainingSets", "GetFreshness", "GetLineage", "GetJob", "ListJobs", "WatchJob",
    ),
    WRITE: ("ApplyDefinitions", "PushFeatures", "StreamPushFeatures", "MaterializeView", "BuildTrainingSet", "CheckSkew", "CancelJob"),
    OPERATE: ("RebuildOnlineStore", "EraseEntity"),
}  # fmt: skip

PERMISSIONS: Permissions = {
    f"/{SERVICE}/{method}": permission for permission, methods in _ROLES.items() for method in methods
}
