"""Two tables about a model: the quality of each version on its live predictions, and its alerts."""

from __future__ import annotations

from rich.table import Table

from flywheel.client import Client
from flywheel.errors import NotFound
from flywheel.paging import list_items
from flywheel_protos.monitor.v1 import monitor_pb2
from flywheel_protos.registry.v1 import model_pb2, registry_pb2


async def versions_table(client: Client, model: str) -> Table:
    """One row per version, oldest first; quality is that of labelled predictions that callers got."""
    table = Table("version", "stage", "served", "labelled", "AUC", "log-loss", "calibration error")
    request = registry_pb2.ListModelVersionsRequest(parent=client.path("models", model))
    versions = await list_items(client.registry.ListModelVersions, request, "model_versions")
    for version in reversed(versions.items):
        stage = model_pb2.Stage.Name(version.stage).removeprefix("STAGE_")
        table.add_row(version.name.rpartition("/")[2], stage, *await _served(client, version.name))
    return table


async def _served(client: Client, version: str) -> list[str]:
    try:
        request = monitor_pb2.GetPerformanceRequest(model_version=version)
        found = (await client.monitor.GetPerformance(request)).performance
    except NotFound:
        return ["never", "", "", "", ""]
    if not found.predictions:
        return ["in shadow only", "", "", "", ""]
    span = f"{found.first_event.ToDatetime():%Y-%m-%d} to {found.last_event.ToDatetime():%Y-%m-%d}"
    qualities = [
        f"{getattr(found, name):.3f}" if found.HasField(name) else "–"
        for name in ("auc", "log_loss", "calibration_error")
    ]
    return [span, f"{found.labelled:,} of {found.predictions:,}", *qualities]


async def alerts_table(client: Client, model: str) -> Table:
    """Alerts in the order of the windows that opened them."""
    table = Table(
        "opened by the window until", "kind", "state", "version", "most drifted features, or reason"
    )
    request = monitor_pb2.ListAlertsRequest(
        parent=client.parent, filter=f"model={client.path('models', model)}"
    )
    alerts = await list_items(client.monitor.ListAlerts, request, "alerts")
    for alert in sorted(alerts.items, key=lambda a: a.window_end.ToNanoseconds()):
        table.add_row(
            f"{alert.window_end.ToDatetime():%Y-%m-%d}",
            alert.kind,
            monitor_pb2.AlertState.Name(alert.state).removeprefix("ALERT_STATE_"),
            alert.model_version.rpartition("/")[2],
            ", ".join(f.feature for f in alert.features[:3]) or alert.reason,
        )
    return table
