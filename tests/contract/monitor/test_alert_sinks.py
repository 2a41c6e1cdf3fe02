"""Contract tests of alert sinks and silences."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flywheel_common.errors import NotFound
from flywheel_common.webhooks.webhook import Webhook
from flywheel_monitor.alerts.lifecycle import Kind
from flywheel_monitor.alerts.silence import Silence
from flywheel_monitor.models.names import AlertName
from flywheel_protos.monitor.v1 import sink_pb2
from tests.support.builders.monitor import MODEL, hour, predictions, version_name
from tests.support.servers.monitor import LocalMonitor
from tests.support.servers.registry import refused

PAGER = Webhook("p", "pager", "https://hooks.example/x", "WEBHOOK", "s" * 16)
PROMETHEUS = Webhook("p", "prometheus", "http://alertmanager:9093/api/v2/alerts", "ALERTMANAGER")
ELSEWHERE = Webhook("q", "pager", "https://hooks.example/q", "WEBHOOK")


async def put(monitor: LocalMonitor, *sinks: Webhook) -> None:
    async with monitor.store.transaction() as records:
        for sink in sinks:
            await records.put_sink(sink)


async def opened(monitor: LocalMonitor, alert: str, kind: Kind = Kind.DATA_DRIFT) -> AlertName:
    await monitor.predicted(predictions([f"for-{alert}"]))
    async with monitor.store.transaction() as records:
        version = await records.version(version_name())
        assert version is not None
        await records.open_alert(alert, version, kind, hour(3), [], "drift in 2 features")
    return AlertName("p", alert)


async def test_each_change_of_an_alert_is_sent_once_to_every_sink(monitor: LocalMonitor) -> None:
    await put(monitor, PAGER, PROMETHEUS, ELSEWHERE)
    name = await opened(monitor, "a1")
    version = await monitor.version_id()
    for _ in range(2):
        async with monitor.store.transaction() as records:
            await records.acknowledge_alert(name, "ann")
    async with monitor.store.transaction() as records:
        await records.confirm_alert(version, Kind.DATA_DRIFT, hour(4), [], "still drifts")
        await records.end_alert(version, Kind.DATA_DRIFT, "4 windows without it")
        await records.resolve_alert(name, "again")
    sent = await monitor.deliveries()
    assert [
        (sink, f"projects/p/alerts/a1/{change}")
        for change in ("open", "acknowledged", "resolved")
        for sink in ("pager", "prometheus")
    ] == [(sink, event) for sink, event, _ in sent]
    bodies = [json.loads(body) for sink, _, body in sent if sink == "pager"]
    assert ["alert.opened", "alert.acknowledged", "alert.resolved"] == [body["type"] for body in bodies]
    assert ["", "ann", "ann"] == [body["alert"]["acknowledged_by"] for body in bodies]
    assert "4 windows without it" == bodies[-1]["alert"]["resolved_reason"]
    assert "1970-01-01T03:00:00+00:00" == bodies[0]["alert"]["window_start"]
    alerts = [json.loads(body)[0] for sink, _, body in sent if sink == "prometheus"]
    assert {"FlywheelDataDrift"} == {alert["labels"]["alertname"] for alert in alerts}
    ends = [datetime.fromisoformat(alert["endsAt"]) - datetime.now(UTC) for alert in alerts]
    assert ends[0] > timedelta(days=300) > timedelta(minutes=1) > abs(ends[-1])


async def test_a_change_that_is_rolled_back_is_not_sent(monitor: LocalMonitor) -> None:
    await put(monitor, PAGER)
    await monitor.predicted(predictions(["x"]))
    with pytest.raises(ZeroDivisionError):
        async with monitor.store.transaction() as records:
            version = await records.version(version_name())
            assert version is not None
            await records.open_alert("a1", version, Kind.DATA_DRIFT, hour(3), [], "drift")
            raise ZeroDivisionError
    assert [] == await monitor.deliveries()


async def test_a_retired_version_is_reported(monitor: LocalMonitor) -> None:
    await put(monitor, PAGER)
    await opened(monitor, "a1")
    await opened(monitor, "a2", Kind.CONCEPT_DRIFT)
    async with monitor.store.transaction() as records:
        await records.retire_alerts(await monitor.version_id(), 2**60)
    events = [event.rpartition("/")[2] for _, event, _ in await monitor.deliveries()]
    assert ["open", "open", "resolved", "resolved"] == events


async def test_silenced_alerts_are_not_sent(monitor: LocalMonitor) -> None:
    await put(monitor, PAGER)
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    silence = Silence(MODEL, Kind.DATA_DRIFT, later, "migration", "ann")
    async with monitor.store.transaction() as records:
        await records.put_silence(silence)
    await opened(monitor, "quiet")
    await opened(monitor, "loud", Kind.CONCEPT_DRIFT)
    assert ["projects/p/alerts/loud/open"] == [event for _, event, _ in await monitor.deliveries()]
    async with monitor.store.transaction() as records:
        assert [silence] == await records.silences("p")
        assert [] == await records.silences("q")
        ended = datetime.now(UTC) - timedelta(seconds=1)
        await records.put_silence(Silence(MODEL, Kind.DATA_DRIFT, ended, "", "ann"))
        await records.put_silence(Silence(MODEL, None, ended, "", "ann"))
        assert [] == await records.silences("p")
        await records.resolve_alert(AlertName("p", "quiet"), "done")
    assert "projects/p/alerts/quiet/resolved" == (await monitor.deliveries())[-1][1]


async def test_sinks_are_replaced_listed_and_deleted(monitor: LocalMonitor) -> None:
    moved = Webhook("p", "pager", "https://hooks.example/y", "WEBHOOK")
    await put(monitor, PAGER, ELSEWHERE, moved, PROMETHEUS)
    await opened(monitor, "a1")
    async with monitor.store.transaction() as records:
        assert [moved, PROMETHEUS] == await records.sinks("p")
        await records.delete_sink("p", "pager")
        assert [PROMETHEUS] == await records.sinks("p")
        with pytest.raises(NotFound):
            await records.delete_sink("p", "pager")
    assert ["prometheus"] == [sink for sink, _, _ in await monitor.deliveries()]


async def test_the_api_keeps_secrets_and_refuses_bad_sinks_and_silences(stub: Any) -> None:
    sink = sink_pb2.AlertSink(
        name="projects/p/alertSinks/pager",
        url="https://hooks.example/x",
        format=sink_pb2.ALERT_SINK_FORMAT_WEBHOOK,
        secret="s" * 16,
    )
    answer = (await stub.SetAlertSink(sink_pb2.SetAlertSinkRequest(sink=sink))).sink
    assert ("", True) == (answer.secret, answer.signed)
    listed = await stub.ListAlertSinks(sink_pb2.ListAlertSinksRequest(parent="projects/p"))
    assert [answer] == list(listed.sinks)
    sink.url = "file:///etc/passwd"
    with refused("INVALID_ARGUMENT", "INVALID_WEBHOOK"):
        await stub.SetAlertSink(sink_pb2.SetAlertSinkRequest(sink=sink))
    await stub.DeleteAlertSink(sink_pb2.DeleteAlertSinkRequest(name=sink.name))
    with refused("NOT_FOUND", "UNKNOWN_WEBHOOK"):
        await stub.DeleteAlertSink(sink_pb2.DeleteAlertSinkRequest(name=sink.name))
    request = sink_pb2.SilenceAlertsRequest(model=MODEL)
    request.duration.FromTimedelta(timedelta(hours=1))
    with refused("INVALID_ARGUMENT", "REASON_REQUIRED"):
        await stub.SilenceAlerts(request)
    request.reason, request.kind = "migration", "NOISE"
    with refused("INVALID_ARGUMENT", "INVALID_SILENCE"):
        await stub.SilenceAlerts(request)
    request.kind = "DATA_DRIFT"
    silence = (await stub.SilenceAlerts(request)).silence
    assert timedelta(minutes=59) < silence.until.ToDatetime(UTC) - datetime.now(UTC) < timedelta(minutes=61)
    listing = await stub.ListAlertSilences(sink_pb2.ListAlertSilencesRequest(parent="projects/p"))
    assert [silence] == list(listing.silences)
    request.duration.FromTimedelta(timedelta(days=400))
    with refused("INVALID_ARGUMENT", "INVALID_SILENCE"):
        await stub.SilenceAlerts(request)
