"""MonitorService: converts requests, calls the use cases, converts the results."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message

from flywheel_common.context import actor
from flywheel_common.deadline import budget
from flywheel_common.kafka.errors import KafkaUnavailable
from flywheel_common.names import parse_project
from flywheel_common.paging import page_size
from flywheel_common.postgres.transactions import Store
from flywheel_monitor.alerts.errors import ReasonRequired
from flywheel_monitor.alerts.filter import parse_filter
from flywheel_monitor.alerts.ports import Alerts
from flywheel_monitor.api.alert_sink_methods import AlertSinkMethods
from flywheel_monitor.api.convert_alerts import alert_to_proto
from flywheel_monitor.api.convert_comparison import comparison_to_proto, limits_from_proto
from flywheel_monitor.api.convert_performance import performance_to_proto
from flywheel_monitor.api.convert_policies import policy_from_proto, policy_to_proto
from flywheel_monitor.api.convert_reports import distributions_to_proto, report_to_proto
from flywheel_monitor.api.experiment_methods import ExperimentMethods
from flywheel_monitor.api.explanation_methods import ExplanationMethods
from flywheel_monitor.api.replay_methods import ReplayMethods
from flywheel_monitor.api.timestamps import micros_of, timestamp
from flywheel_monitor.archive.prediction_archive import PredictionArchive
from flywheel_monitor.comparison.errors import InvalidMode
from flywheel_monitor.comparison.ports import VariantCounts
from flywheel_monitor.comparison.rollout_evidence import rollout_evidence
from flywheel_monitor.evaluation.report_lookup import (
    ReportRecords,
    find_distributions,
    find_report,
    find_reports,
)
from flywheel_monitor.evaluation.report_memory import ReportMemory
from flywheel_monitor.evaluation.window_series import find_series
from flywheel_monitor.experiments.ports import Experiments
from flywheel_monitor.ingest.ports import ConsumerLag, IngestStatus
from flywheel_monitor.models.lookup import existing_policy
from flywheel_monitor.models.names import AlertName, ModelName
from flywheel_monitor.performance.served import PerformanceRecords, served_performance
from flywheel_monitor.replay.replay import Replays
from flywheel_monitor.windows.errors import InvalidTimeRange
from flywheel_protos.monitor.v1 import distribution_pb2, monitor_pb2_grpc
from flywheel_protos.monitor.v1 import monitor_pb2 as pb

M = TypeVar("M", bound=Message)

LAG_SECONDS = 2.0
"""How long GetIngestStatus waits for the broker; then it returns the lag that was read last."""


LATE_MODELS_SHOWN = 100
"""Models with late predictions that GetIngestStatus lists."""


class ApiRecords(
    PerformanceRecords, ReportRecords, VariantCounts, Alerts, IngestStatus, Experiments, Protocol
):
    """What the RPCs read and change."""


class MonitorServicer(
    AlertSinkMethods,
    ExperimentMethods,
    ExplanationMethods,
    ReplayMethods,
    monitor_pb2_grpc.MonitorServiceServicer,
):
    def __init__(
        self,
        *,
        store: Store[ApiRecords],
        archive: PredictionArchive,
        lag: ConsumerLag,
        replays: Replays,
        pane_us: int,
    ) -> None:
        self._store = store
        self._archive = archive
        self._lag = lag
        self._replays = replays
        self._pane_us = pane_us
        self._reports = ReportMemory()

    async def _mutate(
        self, method: str, request: Any, response: type[M], effect: Callable[[ApiRecords], Awaitable[M]]
    ) -> M:
        """Run the effect in one transaction with its response, which a repeat of the request gets again."""

        async def serialized(records: ApiRecords) -> bytes:
            return (await effect(records)).SerializeToString()

        body = request.SerializeToString(deterministic=True)
        return response.FromString(await self._store.once(method, request.request_id, body, serialized))

    async def SetMonitorPolicy(
        self, request: pb.SetMonitorPolicyRequest, context: Any
    ) -> pb.SetMonitorPolicyResponse:
        model = str(ModelName.parse(request.policy.model))
        policy = policy_from_proto(request.policy).checked(self._pane_us)

        async def effect(records: ApiRecords) -> pb.SetMonitorPolicyResponse:
            await records.set_policy(model, policy)
            return pb.SetMonitorPolicyResponse(policy=policy_to_proto(model, policy))

        return await self._mutate("SetMonitorPolicy", request, pb.SetMonitorPolicyResponse, effect)

    async def GetMonitorPolicy(
        self, request: pb.GetMonitorPolicyRequest, context: Any
    ) -> pb.GetMonitorPolicyResponse:
        model = str(ModelName.parse(request.model))
        async with self._store.reading() as records:
            policy = await existing_policy(records, model)
        return pb.GetMonitorPolicyResponse(policy=policy_to_proto(model, policy))

    async def GetDriftReport(
        self, request: pb.GetDriftReportRequest, context: Any
    ) -> pb.GetDriftReportResponse:
        start, end = micros_of(request, "start_time"), micros_of(request, "end_time")
        report = await find_report(
            self._store,
            request.name,
            start_us=start,
            end_us=end,
            segment=request.segment,
            pane_us=self._pane_us,
            memory=self._reports,
        )
        return pb.GetDriftReportResponse(report=report_to_proto(report))

    async def ListDriftReports(
        self, request: pb.ListDriftReportsRequest, context: Any
    ) -> pb.ListDriftReportsResponse:
        size = page_size(request.page_size, default=100)
        start, end = micros_of(request, "start_time"), micros_of(request, "end_time")
        if request.HasField("window"):
            page = await find_series(
                self._store,
                request.name,
                request.window.ToMicroseconds(),
                start_us=start,
                end_us=end,
                segment=request.segment,
                pane_us=self._pane_us,
                size=size,
                token=request.page_token,
            )
        elif start is not None or end is not None or request.segment:
            raise InvalidTimeRange("start_time, end_time and segment need a window.", field="window")
        else:
            page = await find_reports(self._store, request.name, size, request.page_token)
        return pb.ListDriftReportsResponse(
            reports=[report_to_proto(r) for r in page.items], next_page_token=page.next_page_token
        )

    async def GetDistributions(
        self, request: distribution_pb2.GetDistributionsRequest, context: Any
    ) -> distribution_pb2.GetDistributionsResponse:
        found = await find_distributions(
            self._store,
            request.name,
            start_us=micros_of(request, "start_time"),
            end_us=micros_of(request, "end_time"),
            segment=request.segment,
            pane_us=self._pane_us,
        )
        return distributions_to_proto(found)

    async def GetPerformance(
        self, request: pb.GetPerformanceRequest, context: Any
    ) -> pb.GetPerformanceResponse:
        start, end = micros_of(request, "start_time"), micros_of(request, "end_time")
        found = await served_performance(
            self._store,
            request.model_version,
            start_us=start,
            end_us=end,
            segment=request.segment,
            pane_us=self._pane_us,
        )
        return pb.GetPerformanceResponse(performance=performance_to_proto(found))

    async def CompareVariants(
        self, request: pb.CompareVariantsRequest, context: Any
    ) -> pb.CompareVariantsResponse:
        if request.mode not in (pb.COMPARISON_MODE_SHADOW, pb.COMPARISON_MODE_CANARY):
            raise InvalidMode("mode must be COMPARISON_MODE_SHADOW or COMPARISON_MODE_CANARY.", field="mode")
        start = micros_of(request, "start_time")
        found = await rollout_evidence(
            self._store,
            request.rollout,
            request.champion_release,
            request.challenger_release,
            shadow=request.mode == pb.COMPARISON_MODE_SHADOW,
            start_us=start,
            alpha=request.alpha,
            generation=request.generation,
            champion_source=request.champion_source,
            limits=limits_from_proto(request.limits),
        )
        return comparison_to_proto(request.champion_release, request.challenger_release, found)

    async def GetAlert(self, request: pb.GetAlertRequest, context: Any) -> pb.GetAlertResponse:
        name = AlertName.parse(request.name)
        async with self._store.reading() as records:
            alert = await records.alert(name)
        return pb.GetAlertResponse(alert=alert_to_proto(alert))

    async def ListAlerts(self, request: pb.ListAlertsRequest, context: Any) -> pb.ListAlertsResponse:
        project, wanted = parse_project(request.parent), parse_filter(request.filter)
        size = page_size(request.page_size, default=100)
        async with self._store.reading() as records:
            page = await records.alerts(project, wanted, size, request.page_token)
        return pb.ListAlertsResponse(
            alerts=[alert_to_proto(a) for a in page.items], next_page_token=page.next_page_token
        )

    async def AcknowledgeAlert(
        self, request: pb.AcknowledgeAlertRequest, context: Any
    ) -> pb.AcknowledgeAlertResponse:
        name = AlertName.parse(request.name)

        async def effect(records: ApiRecords) -> pb.AcknowledgeAlertResponse:
            alert = await records.acknowledge_alert(name, actor())
            return pb.AcknowledgeAlertResponse(alert=alert_to_proto(alert))

        return await self._mutate("AcknowledgeAlert", request, pb.AcknowledgeAlertResponse, effect)

    async def ResolveAlert(self, request: pb.ResolveAlertRequest, context: Any) -> pb.ResolveAlertResponse:
        name = AlertName.parse(request.name)
        if not request.reason.strip():
            raise ReasonRequired("reason is empty: say why the alert is resolved.", field="reason")

        async def effect(records: ApiRecords) -> pb.ResolveAlertResponse:
            alert = await records.resolve_alert(name, request.reason)
            return pb.ResolveAlertResponse(alert=alert_to_proto(alert))

        return await self._mutate("ResolveAlert", request, pb.ResolveAlertResponse, effect)

    async def GetIngestStatus(
        self, request: pb.GetIngestStatusRequest, context: Any
    ) -> pb.GetIngestStatusResponse:
        project = parse_project(request.parent)
        try:
            with budget(LAG_SECONDS):
                lag = await self._lag.read()
        except KafkaUnavailable:
            lag = self._lag.last
        async with self._store.reading() as records:
            counts, reached = await records.counts(project), await records.reached(project)
            evaluated = await records.evaluated(project)
            waiting = await records.waiting_rows(project)
            late = await records.late_by_model(project, LATE_MODELS_SHOWN)
        return pb.GetIngestStatusResponse(
            lag_records=lag.total,
            predictions=counts.predictions,
            outcomes=counts.outcomes,
            orphan_outcomes=counts.orphans,
            duplicates=counts.duplicates,
            late_predictions=counts.late,
            late_models=[pb.LateModel(model=model, late_predictions=count) for model, count in late],
            waiting_predictions=waiting,
            dead_letters=lag.dead_letters,
            watermark=timestamp(reached),
            windows_evaluated=evaluated,
        )

    async def GetPredictionArchive(
        self, request: pb.GetPredictionArchiveRequest, context: Any
    ) -> pb.GetPredictionArchiveResponse:
        model = str(ModelName.parse(request.model))
        rows, last_event = await self._archive.status(model)
        return pb.GetPredictionArchiveResponse(
            uri=self._archive.uri(model), rows=rows, last_event=timestamp(last_event)
        )
