"""MonitorService at the edge: convert, ask, convert."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from google.protobuf.message import Message

from flywheel_common.context import actor
from flywheel_common.deadline import budget
from flywheel_common.errors import FlywheelError, InvalidArgument
from flywheel_common.names import parse_project
from flywheel_common.paging import page_size
from flywheel_monitor import convert
from flywheel_monitor.alert import parse_filter
from flywheel_monitor.archive import Archive
from flywheel_monitor.ports import ConsumerLag, Records, Store
from flywheel_monitor.queries import Queries
from flywheel_monitor.resource_names import AlertName, ModelName
from flywheel_protos.monitor.v1 import monitor_pb2 as pb
from flywheel_protos.monitor.v1 import monitor_pb2_grpc

M = TypeVar("M", bound=Message)

LAG_SECONDS = 2.0
"""How long the broker may take to say what waits; after that it is told as it was known last."""


class MonitorServicer(monitor_pb2_grpc.MonitorServiceServicer):
    def __init__(
        self,
        *,
        store: Store,
        queries: Queries,
        archive: Archive,
        lag: ConsumerLag,
        pane_us: int,
    ) -> None:
        self._store = store
        self._queries = queries
        self._archive = archive
        self._lag = lag
        self._pane_us = pane_us

    async def _mutate(
        self, method: str, request: Any, answer: type[M], effect: Callable[[Records], Awaitable[M]]
    ) -> M:
        """One transaction: the effect and the answer that a repeat gets."""

        async def answered(records: Records) -> bytes:
            return (await effect(records)).SerializeToString()

        body = request.SerializeToString(deterministic=True)
        return answer.FromString(await self._store.once(method, request.request_id, body, answered))

    async def SetMonitorPolicy(
        self, request: pb.SetMonitorPolicyRequest, context: Any
    ) -> pb.SetMonitorPolicyResponse:
        model = str(ModelName.parse(request.policy.model))
        policy = convert.policy_from_proto(request.policy).checked(self._pane_us)

        async def effect(records: Records) -> pb.SetMonitorPolicyResponse:
            await records.set_policy(model, policy)
            return pb.SetMonitorPolicyResponse(policy=convert.policy_to_proto(model, policy))

        return await self._mutate("SetMonitorPolicy", request, pb.SetMonitorPolicyResponse, effect)

    async def GetMonitorPolicy(
        self, request: pb.GetMonitorPolicyRequest, context: Any
    ) -> pb.GetMonitorPolicyResponse:
        model = str(ModelName.parse(request.model))
        policy = await self._queries.policy(model)
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
        async with self._store.reading() as records:
            alert = await records.alert(AlertName.parse(request.name))
        return pb.GetAlertResponse(alert=convert.alert_to_proto(alert))

    async def ListAlerts(self, request: pb.ListAlertsRequest, context: Any) -> pb.ListAlertsResponse:
        project, wanted = parse_project(request.parent), parse_filter(request.filter)
        size = page_size(request.page_size, default=100)
        async with self._store.reading() as records:
            page = await records.alerts(project, wanted, size, request.page_token)
        return pb.ListAlertsResponse(
            alerts=[convert.alert_to_proto(a) for a in page.items], next_page_token=page.next_page_token
        )

    async def AcknowledgeAlert(
        self, request: pb.AcknowledgeAlertRequest, context: Any
    ) -> pb.AcknowledgeAlertResponse:
        name = AlertName.parse(request.name)

        async def effect(records: Records) -> pb.AcknowledgeAlertResponse:
            alert = await records.acknowledge_alert(name, actor())
            return pb.AcknowledgeAlertResponse(alert=convert.alert_to_proto(alert))

        return await self._mutate("AcknowledgeAlert", request, pb.AcknowledgeAlertResponse, effect)

    async def ResolveAlert(self, request: pb.ResolveAlertRequest, context: Any) -> pb.ResolveAlertResponse:
        name = AlertName.parse(request.name)
        if not request.reason.strip():
            raise InvalidArgument(
                "Say why the alert is resolved: reason is empty.", reason="REASON_REQUIRED", field="reason"
            )

        async def effect(records: Records) -> pb.ResolveAlertResponse:
            alert = await records.resolve_alert(name, request.reason)
            return pb.ResolveAlertResponse(alert=convert.alert_to_proto(alert))

        return await self._mutate("ResolveAlert", request, pb.ResolveAlertResponse, effect)

    async def GetIngestStatus(
        self, request: pb.GetIngestStatusRequest, context: Any
    ) -> pb.GetIngestStatusResponse:
        project = parse_project(request.parent)
        try:
            with budget(LAG_SECONDS):
                lag = await self._lag.read()
        except FlywheelError as error:
            if error.reason != "KAFKA_UNAVAILABLE":
                raise
            lag = self._lag.last
        async with self._store.reading() as records:
            counts, newest = await records.counts(project), await records.newest(project)
            evaluated = await records.evaluated(project)
        return pb.GetIngestStatusResponse(
            lag_records=lag.total,
            predictions=counts.predictions,
            outcomes=counts.outcomes,
            orphan_outcomes=counts.orphans,
            duplicates=counts.duplicates,
            dead_letters=lag.dead_letters,
            watermark=convert.timestamp(newest),
            windows_evaluated=evaluated,
        )

    async def GetPredictionArchive(
        self, request: pb.GetPredictionArchiveRequest, context: Any
    ) -> pb.GetPredictionArchiveResponse:
        model = str(ModelName.parse(request.model))
        rows, last_event = await self._archive.status(model)
        return pb.GetPredictionArchiveResponse(
            uri=self._archive.uri(model), rows=rows, last_event=convert.timestamp(last_event)
        )
