"""The permission that each method of the API needs."""

from __future__ import annotations

from flywheel_common.grpc.auth import OPERATE, READ, WRITE, Permission, Permissions

SERVICE = "flywheel.monitor.v1.MonitorService"
_METHODS: dict[Permission, tuple[str, ...]] = {
    READ: (
        "GetMonitorPolicy",
        "GetDriftReport",
        "ListDriftReports",
        "GetDistributions",
        "GetPerformance",
        "CompareVariants",
        "GetAlert",
        "ListAlerts",
        "ListAlertSinks",
        "ListAlertSilences",
        "GetIngestStatus",
        "GetPredictionArchive",
    ),
    WRITE: ("SetMonitorPolicy", "AcknowledgeAlert", "ResolveAlert", "SilenceAlerts"),
    OPERATE: ("SetAlertSink", "DeleteAlertSink"),
}
PERMISSIONS: Permissions = {
    f"/{SERVICE}/{method}": permission for permission, methods in _METHODS.items() for method in methods
}
