"""The methods about alert sinks and silences."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.message import Message

from flywheel_common.context import actor
from flywheel_common.names import parse_project
from flywheel_common.postgres.transactions import Store
from flywheel_common.webhooks.webhook import Webhook
from flywheel_monitor.alerts.notification import FORMATS, SinkFormat
from flywheel_monitor.alerts.ports import Alerts
from flywheel_monitor.alerts.silence import Silence, silence_of
from flywheel_monitor.api.timestamps import wall_time
from flywheel_monitor.models.names import AlertSinkName, ModelName
from flywheel_protos.monitor.v1 import sink_pb2 as pb

M = TypeVar("M", bound=Message)
FORMAT_OF = {
    pb.ALERT_SINK_FORMAT_WEBHOOK: SinkFormat.WEBHOOK,
    pb.ALERT_SINK_FORMAT_ALERTMANAGER: SinkFormat.ALERTMANAGER,
}


class AlertSinkMethods:
    """Mixed into the servicer, which has the store and `_mutate`."""

    _store: Store[Any]
    _mutate: Callable[[str, Any, type[Any], Callable[[Any], Awaitable[Any]]], Awaitable[Any]]

    async def SetAlertSink(self, request: pb.SetAlertSinkRequest, context: Any) -> pb.SetAlertSinkResponse:
        sink = _sink_from_proto(request.sink)

        async def effect(records: Alerts) -> pb.SetAlertSinkResponse:
            await records.put_sink(sink)
            return pb.SetAlertSinkResponse(sink=_sink_to_proto(sink))

        return await self._mutate("SetAlertSink", request, pb.SetAlertSinkResponse, effect)

    async def ListAlertSinks(
        self, request: pb.ListAlertSinksRequest, context: Any
    ) -> pb.ListAlertSinksResponse:
        project = parse_project(request.parent)
        async with self._store.reading() as records:
            found = await records.sinks(project)
        return pb.ListAlertSinksResponse(sinks=[_sink_to_proto(sink) for sink in found])

    async def DeleteAlertSink(
        self, request: pb.DeleteAlertSinkRequest, context: Any
    ) -> pb.DeleteAlertSinkResponse:
        name = AlertSinkName.parse(request.name)

        async def effect(records: Alerts) -> pb.DeleteAlertSinkResponse:
            await records.delete_sink(name.project, name.sink)
            return pb.DeleteAlertSinkResponse()

        return await self._mutate("DeleteAlertSink", request, pb.DeleteAlertSinkResponse, effect)

    async def SilenceAlerts(self, request: pb.SilenceAlertsRequest, context: Any) -> pb.SilenceAlertsResponse:
        silence = silence_of(
            str(ModelName.parse(request.model)),
            request.kind,
            request.duration.ToTimedelta(),
            request.reason,
            actor(),
            datetime.now(UTC),
        )

        async def effect(records: Alerts) -> pb.SilenceAlertsResponse:
            await records.put_silence(silence)
            return pb.SilenceAlertsResponse(silence=_silence_to_proto(silence))

        return await self._mutate("SilenceAlerts", request, pb.SilenceAlertsResponse, effect)

    async def ListAlertSilences(
        self, request: pb.ListAlertSilencesRequest, context: Any
    ) -> pb.ListAlertSilencesResponse:
        project = parse_project(request.parent)
        async with self._store.reading() as records:
            found = await records.silences(project)
        return pb.ListAlertSilencesResponse(silences=[_silence_to_proto(silence) for silence in found])


def _sink_from_proto(sink: pb.AlertSink) -> Webhook:
    """Raises InvalidName, InvalidId, InvalidWebhook."""
    name = AlertSinkName.parse(sink.name)
    form = FORMAT_OF.get(sink.format, "")
    return Webhook(name.project, name.sink, sink.url, form, sink.secret).checked(FORMATS)


def _sink_to_proto(sink: Webhook) -> pb.AlertSink:
    formats = {value: key for key, value in FORMAT_OF.items()}
    return pb.AlertSink(
        name=str(AlertSinkName(sink.project, sink.id)),
        url=sink.url,
        format=formats[SinkFormat(sink.format)],
        signed=bool(sink.secret),
    )


def _silence_to_proto(silence: Silence) -> pb.AlertSilence:
    return pb.AlertSilence(
        model=silence.model,
        kind=silence.kind or "",
        until=wall_time(silence.until),
        reason=silence.reason,
        created_by=silence.created_by,
    )
