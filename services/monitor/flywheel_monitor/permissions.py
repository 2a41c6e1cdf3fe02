"""The permission that each method of the API needs."""

from __future__ import annotations

from flywheel_common.grpc.auth import OPERATE, PROMOTE, READ, WRITE, Permission, Permissions

SERVICE = "flywheel.monitor.v1.MonitorService"
_METHODS: dict[Permission, tuple[str, ...]] = {
    READ: (
        "GetMonitorPolicy",
        "GetDriftReport",
        "ListDriftReports",
        "GetDistributions",
        "ExplainDrift",
        "GetPerformance",
        "CompareVariants",
        "GetAlert",
        "ListAlerts",
        "ListAlertSinks",
        "ListAlertSilences",
        "GetIngestStatus",
        "GetPredictionArchive",
        "GetExperiment",
        "ListExperiments",
    ),
    WRITE: (
        "SetMonitorPolicy",
        "AcknowledgeAlert",
        "ResolveAlert",
        "SilenceAlerts",
        "ConcludeExperiment",
    ),
    # A replay reads all records of its range.
    OPERATE: ("SetAlertSink", "DeleteAlertSink", "ReplayWindows"),
    # Its verdict can promote a version.
    PROMOTE: ("CreateExperiment",),
}
PERMISSIONS: Permissions = {
    f"/{SERVICE}/{method}": permission for permission, methods in _METHODS.items() for method in methods
}
