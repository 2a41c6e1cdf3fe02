"""Two ways of asking the monitor the same questions: its store and queries themselves, or its RPCs."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC
from typing import Any

import grpc

from flywheel_common.errors import NotFound
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.paging import Page
from flywheel_monitor import convert
from flywheel_monitor.alert import Alert, parse_filter
from flywheel_monitor.alerts import AlertState, Kind
from flywheel_monitor.batches import IngestCounts
from flywheel_monitor.drift import FeatureDrift, Verdict
from flywheel_monitor.policy import MonitorPolicy
from flywheel_monitor.ports import Store
from flywheel_monitor.queries import Queries
from flywheel_monitor.resource_names import AlertName
from flywheel_monitor.windows import Span
from flywheel_protos.monitor.v1 import monitor_pb2 as pb
from flywheel_protos.monitor.v1 import monitor_pb2_grpc

PANE_US = 60_000_000
MODEL = "projects/p/models/late"


class Direct:
    """Asks the store and the queries themselves."""

    def __init__(self, store: Store) -> None:
        self._store, self._queries = store, Queries(store, PANE_US)

    async def set_policy(self, model: str, policy: MonitorPolicy) -> None:
        async with self._store.transaction() as records:
            await records.set_policy(model, policy)

    async def policy(self, model: str) -> MonitorPolicy | None:
        async with self._store.reading() as records:
            return await records.policy(model)

    async def alert(self, name: str) -> Alert:
        async with self._store.reading() as records:
            return await records.alert(AlertName.parse(name))

    async def alerts(
        self, project: str, filter_text: str = "", size: int = 99, token: str = ""
    ) -> Page[Alert]:
        async with self._store.reading() as records:
            return await records.alerts(project, parse_filter(filter_text), size, token)

    async def acknowledge(self, name: str, by: str) -> Alert:
        async with self._store.transaction() as records:
            return await records.acknowledge_alert(AlertName.parse(name), by)

    async def resolve(self, name: str, reason: str) -> Alert:
        async with self._store.transaction() as records:
            return await records.resolve_alert(AlertName.parse(name), reason)

    async def status(self, project: str = "p") -> tuple[IngestCounts, int | None, int]:
        """What was counted, the newest event time, and how many windows were evaluated."""
        async with self._store.reading() as records:
            return (
                await records.counts(project),
                await records.newest(project),
                await records.evaluated(project),
            )

    async def archived(self, model: str = MODEL) -> tuple[int, int | None]:
        """Rows in the archive, and the newest event time among them."""
        async with self._store.reading() as records:
            return await records.archived(model)

    async def performance(
        self, version: str, start_us: int | None = None, end_us: int | None = None, segment: str = ""
    ) -> pb.Performance:
        return convert.performance_to_proto(
            await self._queries.performance(version, start_us, end_us, segment)
        )

    async def report(
        self, name: str, start_us: int | None = None, end_us: int | None = None, segment: str = ""
    ) -> pb.DriftReport:
        return convert.report_to_proto(await self._queries.drift(name, start_us, end_us, segment))

    async def compare(self, *, shadow: bool, since_us: int | None = None) -> pb.CompareVariantsResponse:
        """The challenger, release 2, with the champion, release 1, in rollout 1."""
        names = f"{MODEL}/rollouts/1", f"{MODEL}/releases/1", f"{MODEL}/releases/2"
        found = await self._queries.compare(*names, shadow=shadow, start_us=since_us, alpha=0.0)
        return convert.comparison_to_proto(*names[1:], found)


class OverGrpc:
    """Asks the service: the same questions, each one an RPC."""

    def __init__(self, stub: monitor_pb2_grpc.MonitorServiceStub) -> None:
        self.stub = stub

    async def _call(self, method: str, request: Any, **options: Any) -> Any:
        try:
            return await getattr(self.stub, method)(request, timeout=20, **options)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    async def set_policy(self, model: str, policy: MonitorPolicy) -> None:
        message = convert.policy_to_proto(model, policy)
        await self._call("SetMonitorPolicy", pb.SetMonitorPolicyRequest(policy=message))

    async def policy(self, model: str) -> MonitorPolicy | None:
        try:
            answer = await self._call("GetMonitorPolicy", pb.GetMonitorPolicyRequest(model=model))
        except NotFound as absent:
            if absent.reason != "UNKNOWN_MODEL":
                raise
            return None
        return convert.policy_from_proto(answer.policy)

    async def alert(self, name: str) -> Alert:
        return alert_from((await self._call("GetAlert", pb.GetAlertRequest(name=name))).alert)

    async def alerts(
        self, project: str, filter_text: str = "", size: int = 99, token: str = ""
    ) -> Page[Alert]:
        request = pb.ListAlertsRequest(
            parent=f"projects/{project}", page_size=size, page_token=token, filter=filter_text
        )
        answer = await self._call("ListAlerts", request)
        return Page([alert_from(a) for a in answer.alerts], answer.next_page_token)

    async def acknowledge(self, name: str, by: str) -> Alert:
        request = pb.AcknowledgeAlertRequest(name=name)
        answer = await self._call("AcknowledgeAlert", request, metadata=(("x-flywheel-actor", by),))
        return alert_from(answer.alert)

    async def resolve(self, name: str, reason: str) -> Alert:
        request = pb.ResolveAlertRequest(name=name, reason=reason)
        return alert_from((await self._call("ResolveAlert", request)).alert)

    async def status(self, project: str = "p") -> tuple[IngestCounts, int | None, int]:
        answer = await self._call("GetIngestStatus", pb.GetIngestStatusRequest(parent=f"projects/{project}"))
        counts = IngestCounts(answer.predictions, answer.outcomes, answer.orphan_outcomes, answer.duplicates)
        return counts, convert.micros_of(answer, "watermark"), answer.windows_evaluated

    async def archived(self, model: str = MODEL) -> tuple[int, int | None]:
        answer = await self._call("GetPredictionArchive", pb.GetPredictionArchiveRequest(model=model))
        assert f"s3://b/predictions/{model.split('/')[1]}/{model.split('/')[3]}/" == answer.uri
        return answer.rows, convert.micros_of(answer, "last_event")

    async def performance(
        self, version: str, start_us: int | None = None, end_us: int | None = None, segment: str = ""
    ) -> pb.Performance:
        request = pb.GetPerformanceRequest(
            model_version=version,
            start_time=convert.timestamp(start_us),
            end_time=convert.timestamp(end_us),
            segment=segment,
        )
        return (await self._call("GetPerformance", request)).performance

    async def report(
        self, name: str, start_us: int | None = None, end_us: int | None = None, segment: str = ""
    ) -> pb.DriftReport:
        request = pb.GetDriftReportRequest(
            name=name,
            start_time=convert.timestamp(start_us),
            end_time=convert.timestamp(end_us),
            segment=segment,
        )
        return (await self._call("GetDriftReport", request)).report

    async def compare(self, *, shadow: bool, since_us: int | None = None) -> pb.CompareVariantsResponse:
        request = pb.CompareVariantsRequest(
            rollout=f"{MODEL}/rollouts/1",
            champion_release=f"{MODEL}/releases/1",
            challenger_release=f"{MODEL}/releases/2",
            mode=pb.COMPARISON_MODE_SHADOW if shadow else pb.COMPARISON_MODE_CANARY,
            start_time=convert.timestamp(since_us),
        )
        return await self._call("CompareVariants", request)


def alert_from(message: pb.Alert) -> Alert:
    """What `convert.alert_to_proto` made of it, back."""
    return Alert(
        name=message.name,
        model=message.model,
        model_version=message.model_version,
        kind=Kind(message.kind),
        state=AlertState(message.state),
        span=Span(message.window_start.ToMicroseconds(), message.window_end.ToMicroseconds()),
        last_window_end_us=message.last_window_end.ToMicroseconds(),
        features=tuple(feature_from(f) for f in message.features),
        reason=message.reason,
        opened_at=message.opened_at.ToDatetime(tzinfo=UTC),
        resolved_at=message.resolved_at.ToDatetime(tzinfo=UTC) if message.HasField("resolved_at") else None,
        acknowledged_by=message.acknowledged_by,
        resolved_reason=message.resolved_reason,
    )


def feature_from(message: pb.FeatureDrift) -> FeatureDrift:
    found = {f.name: getattr(message, f.name) for f in fields(FeatureDrift)}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            found[field.name] = None
    return FeatureDrift(**{**found, "verdict": Verdict(message.verdict)})
