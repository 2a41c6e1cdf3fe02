"""The gRPC edge of the monitor: conversion, status codes and reasons, paging, authorization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_common.errors import Unavailable
from flywheel_common.grpc.auth import missing_rows
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_monitor.alerts.lifecycle import Kind
from flywheel_monitor.api.convert_alerts import alert_to_proto
from flywheel_monitor.api.convert_comparison import comparison_to_proto
from flywheel_monitor.api.convert_performance import performance_to_proto
from flywheel_monitor.api.convert_policies import policy_to_proto
from flywheel_monitor.api.convert_reports import report_to_proto
from flywheel_monitor.drift.statistics import FeatureDrift
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.fakes.lag import MemoryLag
from flywheel_monitor.models.names import AlertName
from flywheel_monitor.permissions import PERMISSIONS, SERVICE
from flywheel_protos.monitor.v1 import distribution_pb2, explanation_pb2, replay_pb2
from flywheel_protos.monitor.v1 import monitor_pb2 as pb
from flywheel_protos.monitor.v1.feature_rule_pb2 import FeatureRule
from tests.support.builders.monitor import (
    CHALLENGER,
    HOUR_US,
    MINUTE_US,
    MODEL,
    SHADOW,
    START_US,
    STRICT_POLICY,
    hour,
    outcomes,
    predictions,
    scored_labels,
    version_name,
)
from tests.support.servers.monitor import LocalMonitor, served

OTHER = "projects/p/models/other"
ROLLOUT = f"{MODEL}/rollouts/1"
DELAY = FeatureDrift(
    feature="v__delay",
    psi=0.5,
    psi_corrected=0.25,
    ks=0.125,
    ks_p_value=1e-9,
    adjusted_p_value=2e-9,
    mean_shift=-1.5,
    unseen_rate=0.01,
    verdict=Verdict.DRIFT,
    reason="PSI 0.250",
)


def at(request: Any, field: str, micros: int) -> Any:
    getattr(request, field).FromMicroseconds(micros)
    return request


async def open_alert(edge: LocalMonitor, alert: str = "a1", kind: Kind = Kind.DATA_DRIFT) -> str:
    await edge.predicted(predictions([f"for-{alert}"]))
    async with edge.store.transaction() as records:
        version = await records.version(version_name())
        assert version is not None
        return await records.open_alert(alert, version, kind, hour(3), [DELAY], "drift")


def test_every_method_has_a_permission() -> None:
    methods = pb.DESCRIPTOR.services_by_name["MonitorService"].methods
    assert missing_rows([f"/{SERVICE}/{m.name}" for m in methods], PERMISSIONS) == []


async def test_a_policy_is_set_and_read(stub: Any) -> None:
    message = policy_to_proto(MODEL, STRICT_POLICY)
    assert message == (await stub.SetMonitorPolicy(pb.SetMonitorPolicyRequest(policy=message))).policy
    assert message == (await stub.GetMonitorPolicy(pb.GetMonitorPolicyRequest(model=MODEL))).policy


async def test_performance_is_converted(edge: LocalMonitor, stub: Any) -> None:
    ids, scores, labels = scored_labels(40)
    times = [START_US + i * MINUTE_US for i in range(40)]
    segments = ["JFK"] * 10 + [""] * 30
    await edge.predicted(predictions(ids, scores, times=times, segments=segments))
    await edge.labelled(outcomes(ids[:30], labels[:30]))
    request = pb.GetPerformanceRequest(model_version=version_name())
    found = (await stub.GetPerformance(request)).performance
    assert performance_to_proto(await edge.performance()) == found
    assert (40, 30, 0.75) == (found.predictions, found.labelled, found.coverage)
    middles = (np.floor(np.array(scores) * 200) + 0.5) / 200
    promised = np.maximum(middles, 1 - middles)
    assert (promised.mean(), promised[:30].mean()) == pytest.approx(
        (found.estimate.accuracy, found.estimate.labelled_accuracy), abs=1e-12
    )
    right = (np.array(scores) >= 0.5)[:30] == np.array(labels[:30])
    assert right.mean() == pytest.approx(found.estimate.realised_accuracy, abs=1e-12)
    assert (times[0], times[39]) == (found.first_event.ToMicroseconds(), found.last_event.ToMicroseconds())
    at(at(request, "start_time", times[5]), "end_time", times[20])
    assert 15 == (await stub.GetPerformance(request)).performance.predictions
    segment = pb.GetPerformanceRequest(model_version=version_name(), segment="JFK")
    assert 10 == (await stub.GetPerformance(segment)).performance.predictions
    empty = pb.GetPerformanceRequest(model_version=version_name(), segment="none")
    found = (await stub.GetPerformance(empty)).performance
    absent = ("auc", "log_loss", "brier", "calibration_error", "first_event", "last_event", "estimate")
    assert [False] * len(absent) == [found.HasField(field) for field in absent]


async def test_a_drift_report_is_converted(edge: LocalMonitor, stub: Any) -> None:
    await edge.predicted(predictions(["a", "b"]))
    request = pb.GetDriftReportRequest(name=MODEL)
    at(at(request, "start_time", START_US), "end_time", START_US + MINUTE_US)
    found = (await stub.GetDriftReport(request)).report
    assert report_to_proto(await edge.report(MODEL, START_US, START_US + MINUTE_US)) == found
    assert (version_name(), 2) == (found.model_version, found.predictions)
    assert START_US == found.window_start.ToMicroseconds()
    assert not found.HasField("label_mean") and not found.HasField("label_shift")
    version = await edge.version_id()
    stored = await edge.report(MODEL, START_US, START_US + MINUTE_US)
    async with edge.store.transaction() as records:
        await records.put_report(version, stored)
    newest = pb.GetDriftReportRequest(name=version_name())
    assert report_to_proto(stored) == (await stub.GetDriftReport(newest)).report


@pytest.mark.parametrize("shadow", [True, False])
async def test_a_comparison_is_converted(edge: LocalMonitor, stub: Any, shadow: bool) -> None:
    ids, scores, labels = scored_labels(60)
    mine = ids[:40] if shadow else [f"c-{i}" for i in ids[:40]]
    role = SHADOW if shadow else CHALLENGER
    times = [START_US + i * MINUTE_US for i in range(60)]
    await edge.predicted(predictions(ids, scores, times=times, rollout=ROLLOUT))
    challenger = np.clip(scores[:40] + 0.05, 0, 1)
    await edge.predicted(
        predictions(mine, challenger, times=times[:40], version=2, release=2, role=role, rollout=ROLLOUT)
    )
    await edge.labelled(outcomes(ids, labels))
    await edge.labelled(outcomes([i for i in mine if i not in ids], labels[: 0 if shadow else 40]))
    request = pb.CompareVariantsRequest(
        rollout=ROLLOUT,
        champion_release=f"{MODEL}/releases/1",
        challenger_release=f"{MODEL}/releases/2",
        mode=pb.COMPARISON_MODE_SHADOW if shadow else pb.COMPARISON_MODE_CANARY,
    )
    found = await stub.CompareVariants(request)
    releases = request.champion_release, request.challenger_release
    assert comparison_to_proto(*releases, await edge.compare(shadow=shadow)) == found
    assert (60, 40, 40) == (found.champion.predictions, found.challenger.predictions, found.labelled)
    assert shadow == found.HasField("disagreement_rate")
    assert found.log_loss_delta_lower < found.log_loss_delta < found.log_loss_delta_upper
    since = await stub.CompareVariants(at(request, "start_time", times[30]))
    assert (30, 10) == (since.champion.predictions, since.challenger.predictions)
    covered = since.covered_from.ToMicroseconds(), since.covered_until.ToMicroseconds()
    assert (times[30 + 2 if shadow else 30 + 1], times[57]) == covered
    request.alpha = 0.5
    assert (await stub.CompareVariants(request)).log_loss_delta_upper < since.log_loss_delta_upper


async def test_alerts_are_converted_acknowledged_and_resolved(edge: LocalMonitor, stub: Any) -> None:
    name = await open_alert(edge)
    async with edge.store.reading() as records:
        stored = await records.alert(AlertName.parse(name))
    shown = (await stub.GetAlert(pb.GetAlertRequest(name=name))).alert
    assert alert_to_proto(stored) == shown
    assert (pb.ALERT_STATE_OPEN, "DATA_DRIFT", hour(3).end_us) == (
        shown.state,
        shown.kind,
        shown.window_end.ToMicroseconds(),
    )
    assert not shown.HasField("resolved_at") and not shown.features[0].HasField("chi_square")
    metadata = (("x-flywheel-actor", "ann"),)
    acknowledge = pb.AcknowledgeAlertRequest(name=name)
    shown = (await stub.AcknowledgeAlert(acknowledge, metadata=metadata)).alert
    assert (pb.ALERT_STATE_ACKNOWLEDGED, "ann") == (shown.state, shown.acknowledged_by)
    shown = (await stub.ResolveAlert(pb.ResolveAlertRequest(name=name, reason="seen"))).alert
    assert (pb.ALERT_STATE_RESOLVED, "seen") == (shown.state, shown.resolved_reason)
    assert shown.HasField("resolved_at")


async def test_alerts_are_listed_by_page_and_filter(edge: LocalMonitor, stub: Any) -> None:
    for alert, kind in (("a1", Kind.DATA_DRIFT), ("a2", Kind.LABEL_DRIFT), ("a3", Kind.CONCEPT_DRIFT)):
        await open_alert(edge, alert, kind)
    request = pb.ListAlertsRequest(parent="projects/p", page_size=2)
    page = await stub.ListAlerts(request)
    assert ["a3", "a2"] == [a.name.rsplit("/", 1)[1] for a in page.alerts]
    request.page_token = page.next_page_token
    page = await stub.ListAlerts(request)
    assert (["a1"], "") == ([a.name.rsplit("/", 1)[1] for a in page.alerts], page.next_page_token)
    filtered = pb.ListAlertsRequest(parent="projects/p", filter="kind=LABEL_DRIFT AND state=OPEN")
    assert ["LABEL_DRIFT"] == [a.kind for a in (await stub.ListAlerts(filtered)).alerts]
    request.filter = "state=OPEN"
    assert "INVALID_ARGUMENT INVALID_PAGE_TOKEN" == await refused(stub.ListAlerts(request))


async def test_the_ingest_status_is_converted(edge: LocalMonitor) -> None:
    lag = MemoryLag({"prediction.logged": 1})
    lag.write("prediction.logged", 0, 3)
    lag.park(2)
    await edge.predicted(
        predictions(["a", "b", "b", "c"], times=[START_US + 9, START_US + 7, START_US, START_US + 8])
    )
    await edge.labelled(outcomes(["a", "x", "y"], [1.0, 0.0, 1.0]))
    version, report = await edge.version_id(), await edge.report(MODEL, START_US, START_US + HOUR_US)
    async with edge.store.transaction() as records:
        await records.put_report(version, report)
    request = pb.GetIngestStatusRequest(parent="projects/p")
    async with served(edge.store, lag) as stub:
        found = await stub.GetIngestStatus(request)
        assert (3, 2) == (found.lag_records, found.dead_letters)
        assert (3, 3, 2, 1) == (
            found.predictions,
            found.outcomes,
            found.orphan_outcomes,
            found.duplicates,
        )
        assert (START_US + 7, 1) == (found.watermark.ToMicroseconds(), found.windows_evaluated)
        lag.write("prediction.logged", 0, 9)
        lag.down = True
        assert found == await stub.GetIngestStatus(request), "the last lag while Kafka is down"
        empty = await stub.GetIngestStatus(pb.GetIngestStatusRequest(parent="projects/q"))
        assert (0, False) == (empty.predictions, empty.HasField("watermark"))


async def test_other_errors_of_the_lag_fail_the_status(edge: LocalMonitor) -> None:
    class BrokenLag(MemoryLag):
        async def read(self) -> Any:
            raise Unavailable("The database is down.")

    async with served(edge.store, BrokenLag()) as stub:
        call = stub.GetIngestStatus(pb.GetIngestStatusRequest(parent="projects/p"))
        assert "UNAVAILABLE UNAVAILABLE" == await refused(call)


async def test_the_archive_status_is_converted(edge: LocalMonitor, stub: Any) -> None:
    request = pb.GetPredictionArchiveRequest(model=MODEL)
    found = await stub.GetPredictionArchive(request)
    uri = "s3://b/predictions/p/late/"
    assert (uri, 0, False) == (found.uri, found.rows, found.HasField("last_event"))
    await edge.predicted(predictions(["a", "b"]))
    async with edge.store.transaction() as records:
        await records.cut_segment(MODEL, 1)
        (segment,) = await records.pending_segments()
        await records.complete_segment(segment.id, ["key"], 2, START_US)
    found = await stub.GetPredictionArchive(request)
    assert (uri, 2, START_US) == (found.uri, found.rows, found.last_event.ToMicroseconds())


async def refused(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    return f"{error.code.name} {error.reason}"


def comparison(**changes: Any) -> pb.CompareVariantsRequest:
    fields = {
        "rollout": ROLLOUT,
        "champion_release": "a",
        "challenger_release": "b",
        "mode": pb.COMPARISON_MODE_SHADOW,
    }
    return pb.CompareVariantsRequest(**{**fields, **changes})


def backwards(request: Any) -> Any:
    return at(at(request, "start_time", START_US + HOUR_US), "end_time", START_US)


def bad_nanos(request: Any) -> Any:
    request.start_time.nanos = -1
    return request


V1, V2 = version_name(1), version_name(2)
REFUSALS: list[tuple[str, str, Callable[[], Any]]] = [
    (
        "INVALID_ARGUMENT INVALID_POLICY",
        "SetMonitorPolicy",
        lambda: pb.SetMonitorPolicyRequest(policy=pb.MonitorPolicy(model=MODEL, fdr=2.0)),
    ),
    (
        "INVALID_ARGUMENT INVALID_POLICY",
        "SetMonitorPolicy",
        lambda: pb.SetMonitorPolicyRequest(
            policy=pb.MonitorPolicy(model=MODEL, feature_rules=[FeatureRule(feature="a")] * 2)
        ),
    ),
    (
        "INVALID_ARGUMENT OUT_OF_RANGE",
        "SetMonitorPolicy",
        lambda: pb.SetMonitorPolicyRequest(
            policy=pb.MonitorPolicy(
                model=MODEL, feature_rules=[FeatureRule(feature="a", silenced_until=Timestamp())]
            )
        ),
    ),
    ("INVALID_ARGUMENT INVALID_NAME", "SetMonitorPolicy", pb.SetMonitorPolicyRequest),
    (
        "NOT_FOUND UNKNOWN_MODEL",
        "GetMonitorPolicy",
        lambda: pb.GetMonitorPolicyRequest(model="projects/p/models/none"),
    ),
    (
        "NOT_FOUND UNKNOWN_MODEL",
        "GetDriftReport",
        lambda: pb.GetDriftReportRequest(name="projects/p/models/none"),
    ),
    ("NOT_FOUND NO_PREDICTIONS", "GetDriftReport", lambda: pb.GetDriftReportRequest(name=V2)),
    ("NOT_FOUND NO_PREDICTIONS", "GetDriftReport", lambda: pb.GetDriftReportRequest(name=V1)),
    ("NOT_FOUND NO_REFERENCE", "GetDriftReport", lambda: pb.GetDriftReportRequest(name=OTHER)),
    (
        "INVALID_ARGUMENT INVALID_TIME_RANGE",
        "GetDriftReport",
        lambda: backwards(pb.GetDriftReportRequest(name=V1)),
    ),
    (
        "INVALID_ARGUMENT INVALID_TIME",
        "GetDriftReport",
        lambda: bad_nanos(pb.GetDriftReportRequest(name=V1)),
    ),
    ("NOT_FOUND NO_PREDICTIONS", "GetPerformance", lambda: pb.GetPerformanceRequest(model_version=V2)),
    (
        "INVALID_ARGUMENT INVALID_NAME",
        "GetPerformance",
        lambda: pb.GetPerformanceRequest(model_version=MODEL),
    ),
    (
        "INVALID_ARGUMENT INVALID_TIME_RANGE",
        "GetPerformance",
        lambda: backwards(pb.GetPerformanceRequest(model_version=V1)),
    ),
    ("INVALID_ARGUMENT INVALID_MODE", "CompareVariants", lambda: comparison(mode=0)),
    ("INVALID_ARGUMENT INVALID_ALPHA", "CompareVariants", lambda: comparison(alpha=1.0)),
    ("INVALID_ARGUMENT INVALID_RELEASES", "CompareVariants", lambda: comparison(challenger_release="a")),
    ("INVALID_ARGUMENT INVALID_NAME", "CompareVariants", lambda: comparison(rollout="x")),
    ("NOT_FOUND UNKNOWN_ALERT", "GetAlert", lambda: pb.GetAlertRequest(name="projects/p/alerts/none")),
    (
        "INVALID_ARGUMENT INVALID_FILTER",
        "ListAlerts",
        lambda: pb.ListAlertsRequest(parent="projects/p", filter="colour=red"),
    ),
    (
        "NOT_FOUND UNKNOWN_ALERT",
        "AcknowledgeAlert",
        lambda: pb.AcknowledgeAlertRequest(name="projects/p/alerts/none"),
    ),
    (
        "FAILED_PRECONDITION ALERT_RESOLVED",
        "AcknowledgeAlert",
        lambda: pb.AcknowledgeAlertRequest(name="projects/p/alerts/over"),
    ),
    (
        "NOT_FOUND UNKNOWN_ALERT",
        "ResolveAlert",
        lambda: pb.ResolveAlertRequest(name="projects/p/alerts/none", reason="why"),
    ),
    (
        "INVALID_ARGUMENT REASON_REQUIRED",
        "ResolveAlert",
        lambda: pb.ResolveAlertRequest(name="projects/p/alerts/over", reason=" "),
    ),
    ("INVALID_ARGUMENT INVALID_NAME", "GetPredictionArchive", pb.GetPredictionArchiveRequest),
]


async def test_errors_have_their_status_and_reason(edge: LocalMonitor, stub: Any) -> None:
    name = await open_alert(edge, "over")
    await stub.ResolveAlert(pb.ResolveAlertRequest(name=name, reason="seen"))
    await edge.predicted(predictions(["x"], model=OTHER))
    found = [(await refused(getattr(stub, method)(make())), method) for _, method, make in REFUSALS]
    assert [(expected, method) for expected, method, _ in REFUSALS] == found


def zero_times() -> list[tuple[str, str]]:
    """(method, Timestamp field) of every request of the monitor."""
    methods = pb.DESCRIPTOR.services_by_name["MonitorService"].methods
    return [
        (method.name, field.name)
        for method in methods
        for field in method.input_type.fields
        if field.message_type is not None and field.message_type.full_name == "google.protobuf.Timestamp"
    ]


@pytest.mark.parametrize(("method", "field"), zero_times())
async def test_a_timestamp_without_a_value_is_refused(stub: Any, method: str, field: str) -> None:
    requests = {
        "GetDriftReport": pb.GetDriftReportRequest(name=V1),
        "ListDriftReports": pb.ListDriftReportsRequest(name=V1),
        "GetDistributions": distribution_pb2.GetDistributionsRequest(name=V1),
        "ExplainDrift": explanation_pb2.ExplainDriftRequest(name=V1),
        "GetPerformance": pb.GetPerformanceRequest(model_version=V1),
        "CompareVariants": comparison(),
        "ReplayWindows": replay_pb2.ReplayWindowsRequest(model=MODEL),
    }
    request = requests[method]
    getattr(request, field).SetInParent()
    call = getattr(stub, method)(request)
    # A stream fails at its first message.
    assert "INVALID_ARGUMENT OUT_OF_RANGE" == await refused(call.read() if hasattr(call, "read") else call)


async def test_distributions_and_the_list_of_reports_are_served(edge: LocalMonitor, stub: Any) -> None:
    await edge.predicted(predictions([f"s-{i}" for i in range(20)], values=[1.0] * 20))
    request = distribution_pb2.GetDistributionsRequest(name=V1)
    request.start_time.FromMicroseconds(START_US)
    request.end_time.FromMicroseconds(START_US + HOUR_US)
    answer = await stub.GetDistributions(request)
    (feature,) = answer.features
    assert (V1, 20, [0, 20]) == (answer.model_version, answer.predictions, list(feature.observed))
    assert START_US == answer.window_start.ToMicroseconds()
    assert [] == list((await stub.ListDriftReports(pb.ListDriftReportsRequest(name=V1))).reports)
    refusal = await refused(stub.ListDriftReports(pb.ListDriftReportsRequest(name=V1, page_token="x")))
    assert "INVALID_ARGUMENT INVALID_PAGE_TOKEN" == refusal
