"""MonitorService at the edge: convert, ask, convert."""

from __future__ import annotations

from typing import Any

from flywheel_common.context import actor
from flywheel_common.errors import FlywheelError, InvalidArgument, NotFound
from flywheel_common.idempotency import Idempotency
from flywheel_common.names import parse_project
from flywheel_common.paging import page_size
from flywheel_common.postgres import Connection
from flywheel_monitor import convert
from flywheel_monitor.queries import Queries
from flywheel_monitor.resource_names import AlertName, ModelName
from flywheel_monitor.store.alert_rows import Alerts
from flywheel_monitor.store.archive import Archive
from flywheel_monitor.store.evaluations import Evaluations
from flywheel_monitor.store.lag import LagProbe
from flywheel_monitor.store.prediction_rows import PredictionRows
from flywheel_monitor.store.versions import Versions
from flywheel_protos.monitor.v1 import monitor_pb2 as pb
from flywheel_protos.monitor.v1 import monitor_pb2_grpc


class MonitorServicer(monitor_pb2_grpc.MonitorServiceServicer):
    def __init__(
        self,
        *,
        queries: Queries,
        versions: Versions,
        alerts: Alerts,
        evaluations: Evaluations,
        rows: PredictionRows,
        archive: Archive,
        lag: LagProbe,
        idempotency: Idempotency,
        pane_us: int,
    ) -> None:
        self._queries = queries
        self._versions = versions
        self._alerts = alerts
        self._evaluations = evaluations
        self._rows = rows
        self._archive = archive
        self._lag = lag
        self._idempotency = idempotency
        self._pane_us = pane_us

    async def SetMonitorPolicy(
        self, request: pb.SetMonitorPolicyRequest, context: Any
    ) -> pb.SetMonitorPolicyResponse:
        model = str(ModelName.parse(request.policy.model))
        policy = convert.policy_from_proto(request.policy).checked(self._pane_us)

        async def effect(conn: Connection) -> pb.SetMonitorPolicyResponse:
            await self._versions.set_policy(conn, model, policy)
            return pb.SetMonitorPolicyResponse(policy=convert.policy_to_proto(model, policy))

        return await self._idempotency.run(
            "SetMonitorPolicy", request.request_id, request, pb.SetMonitorPolicyResponse, effect
        )

    async def GetMonitorPolicy(
        self, request: pb.GetMonitorPolicyRequest, context: Any
    ) -> pb.GetMonitorPolicyResponse:
        model = str(ModelName.parse(request.model))
        policy = await self._versions.policy(model)
        if policy is None:
            raise NotFound(
                f"Model {model} was never seen here: set a policy, or let it answer.",
                reason="UNKNOWN_MODEL",
                model=model,
            )
        return pb.GetMonitorPolicyResponse(policy=convert.policy_to_proto(model, policy))

    async def GetDriftReport(
        self, request: pb.GetDriftReportRequest, context: Any
    ) -> pb.GetDriftReportResponse:
        start, end = convert.micros_of(request, "start_time"), convert.micros_of(request, "end_time")
        report = await self._queries.drift(request.name, start, end, request.segment)
        return pb.GetDriftReportResponse(report=convert.report_to_proto(report))

    async def GetPerformance(
        self, request: pb.GetPerformanceRequest, context: Any
    ) -> pb.GetPerformanceResponse:
        start, end = convert.micros_of(request, "start_time"), convert.micros_of(request, "end_time")
        found = await self._queries.performance(request.model_version, start, end, request.segment)
        return pb.GetPerformanceResponse(performance=convert.performance_to_proto(found))

    async def CompareVariants(
        self, request: pb.CompareVariantsRequest, context: Any
    ) -> pb.CompareVariantsResponse:
        if request.mode not in (pb.COMPARISON_MODE_SHADOW, pb.COMPARISON_MODE_CANARY):
            raise InvalidArgument(
                "mode must be COMPARISON_MODE_SHADOW or COMPARISON_MODE_CANARY.",
                reason="INVALID_MODE",
                field="mode",
            )
        found = await self._queries.compare(
            request.rollout,
            request.champion_release,
            request.challenger_release,
            shadow=request.mode == pb.COMPARISON_MODE_SHADOW,
            start_us=convert.micros_of(request, "start_time"),
            alpha=request.alpha,
        )
        return convert.comparison_to_proto(request.champion_release, request.challenger_release, found)

    async def GetAlert(self, request: pb.GetAlertRequest, context: Any) -> pb.GetAlertResponse:
        return pb.GetAlertResponse(
            alert=convert.alert_to_proto(await self._alerts.get(AlertName.parse(request.name)))
        )

    async def ListAlerts(self, request: pb.ListAlertsRequest, context: Any) -> pb.ListAlertsResponse:
        size = page_size(request.page_size, default=100)
        page = await self._alerts.list(
            parse_project(request.parent), request.filter, size, request.page_token
        )
        return pb.ListAlertsResponse(
            alerts=[convert.alert_to_proto(a) for a in page.items], next_page_token=page.next_page_token
        )

    async def AcknowledgeAlert(
        self, request: pb.AcknowledgeAlertRequest, context: Any
    ) -> pb.AcknowledgeAlertResponse:
        name = AlertName.parse(request.name)

        async def effect(conn: Connection) -> pb.AcknowledgeAlertResponse:
            return pb.AcknowledgeAlertResponse(
                alert=convert.alert_to_proto(await self._alerts.acknowledge(conn, name, actor()))
            )

        return await self._idempotency.run(
            "AcknowledgeAlert", request.request_id, request, pb.AcknowledgeAlertResponse, effect
        )

    async def ResolveAlert(self, request: pb.ResolveAlertRequest, context: Any) -> pb.ResolveAlertResponse:
        name = AlertName.parse(request.name)
        if not request.reason.strip():
            raise InvalidArgument(
                "Say why the alert is resolved: reason is empty.", reason="REASON_REQUIRED", field="reason"
            )

        async def effect(conn: Connection) -> pb.ResolveAlertResponse:
            alert = await self._alerts.resolve_by_name(conn, name, request.reason)
            return pb.ResolveAlertResponse(alert=convert.alert_to_proto(alert))

        return await self._idempotency.run(
            "ResolveAlert", request.request_id, request, pb.ResolveAlertResponse, effect
        )

    async def GetIngestStatus(
        self, request: pb.GetIngestStatusRequest, context: Any
    ) -> pb.GetIngestStatusResponse:
        project = parse_project(request.parent)
        try:
            lag = await self._lag.read()
        except FlywheelError as error:
            if error.reason != "KAFKA_UNAVAILABLE":
                raise
            lag = self._lag.last
        counts = await self._rows.counts(project)
        return pb.GetIngestStatusResponse(
            lag_records=lag.total,
            predictions=counts["predictions"],
            outcomes=counts["outcomes"],
            orphan_outcomes=counts["orphans"],
            duplicates=counts["duplicates"],
            dead_letters=lag.dead_letters,
            watermark=convert.timestamp(await self._rows.newest(project)),
            windows_evaluated=await self._evaluations.evaluated(project),
        )

    async def GetPredictionArchive(
        self, request: pb.GetPredictionArchiveRequest, context: Any
    ) -> pb.GetPredictionArchiveResponse:
        model = str(ModelName.parse(request.model))
        rows, last_event = await self._archive.status(model)
        return pb.GetPredictionArchiveResponse(
            uri=self._archive.uri(model), rows=rows, last_event=convert.timestamp(last_event)
        )
