"""The permission that each method requires (jwt mode)."""

from __future__ import annotations

from flywheel_common.grpc.auth import ATTEMPT, OPERATE, READ, WRITE, Permission, Permissions

SERVICE = "flywheel.feature.v1.FeatureService"

_METHODS: dict[Permission, tuple[str, ...]] = {
    READ: (
        *("GetEntity", "ListEntities", "GetSource", "ListSources", "GetView", "ListViews"),
        *("GetFeatureSet", "ListFeatureSets", "GetLineage"),
        *("GetOnlineFeatures", "GetFreshness"),
        *("GetTrainingSet", "ListTrainingSets"),
        *("GetJob", "ListJobs", "WatchJob"),
    ),
    WRITE: (
        "ApplyDefinitions",
        *("PushFeatures", "StreamPushFeatures", "MaterializeView"),
        *("BuildTrainingSet", "CheckSkew"),
        "CancelJob",
    ),
    OPERATE: ("RebuildOnlineStore", "EraseEntity"),
    ATTEMPT: ("SignObjectRequests",),
}

PERMISSIONS: Permissions = {
    f"/{SERVICE}/{method}": permission for permission, methods in _METHODS.items() for method in methods
}
