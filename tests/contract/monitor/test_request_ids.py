"""Idempotent mutations: a repeat returns the first response; a request_id with another body is rejected."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from flywheel_common.context import Call, Principal, current_call
from flywheel_common.errors import FailedPrecondition, InvalidArgument
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_monitor.alerts.lifecycle import Kind
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.windows.span import Span
from flywheel_protos.monitor.v1 import experiment_pb2 as xp
from flywheel_protos.monitor.v1 import monitor_pb2 as pb
from flywheel_protos.monitor.v1 import sink_pb2
from tests.support.builders.monitor import (
    MODEL,
    predictions,
    version_name,
)
from tests.support.row_counts import row_counts
from tests.support.servers.monitor import LocalMonitor

MUTATIONS = (
    "SetMonitorPolicy",
    "AcknowledgeAlert",
    "ResolveAlert",
    "SetAlertSink",
    "DeleteAlertSink",
    "SilenceAlerts",
    "CreateExperiment",
    "ConcludeExperiment",
)


async def alert(monitor: LocalMonitor, alert_id: str, kind: Kind) -> str:
    await monitor.predicted(predictions([alert_id]))
    async with monitor.store.transaction() as records:
        version = await records.version(version_name())
        return await records.open_alert(alert_id, version, kind, Span(0, 1), [], "drift")


def experiment(name: str, weeks: int = 1) -> xp.Experiment:
    metric = xp.ExperimentMetric(
        name="buys",
        role=xp.METRIC_ROLE_PRIMARY,
        kind=xp.METRIC_KIND_PROPORTION,
        numerator="buy",
    )
    arms = (xp.ExperimentArm(source=f"{MODEL}/rollouts/1", release=f"{MODEL}/releases/{n}") for n in (1, 2))
    full = f"{MODEL}/experiments/{name}"
    return xp.Experiment(name=full, control=next(arms), treatment=next(arms), metrics=[metric], weeks=weeks)


def created(name: str, weeks: int = 1, request_id: str = "") -> xp.CreateExperimentRequest:
    return xp.CreateExperimentRequest(experiment=experiment(name, weeks), request_id=request_id)


def concluded(name: str, reason: str = "why", request_id: str = "") -> xp.ConcludeExperimentRequest:
    return xp.ConcludeExperimentRequest(
        name=f"{MODEL}/experiments/{name}",
        verdict=xp.EXPERIMENT_VERDICT_SHIP,
        reason=reason,
        request_id=request_id,
    )


def policy(least: int, model: str = MODEL) -> pb.MonitorPolicy:
    return pb.MonitorPolicy(model=model, min_predictions=least)


def sink(url: str, name: str = "pager") -> sink_pb2.SetAlertSinkRequest:
    form = sink_pb2.ALERT_SINK_FORMAT_WEBHOOK
    made = sink_pb2.AlertSink(name=f"projects/p/alertSinks/{name}", url=url, format=form)
    return sink_pb2.SetAlertSinkRequest(sink=made)


def deletion(name: str, request_id: str = "") -> sink_pb2.DeleteAlertSinkRequest:
    return sink_pb2.DeleteAlertSinkRequest(name=f"projects/p/alertSinks/{name}", request_id=request_id)


def silence(seconds: int, model: str = MODEL, request_id: str = "") -> sink_pb2.SilenceAlertsRequest:
    request = sink_pb2.SilenceAlertsRequest(model=model, reason="why", request_id=request_id)
    request.duration.FromSeconds(seconds)
    return request


def once(request: Any) -> Any:
    request.request_id = "once"
    return request


async def refused(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    return f"{error.code.name} {error.reason}"


def test_every_method_with_a_request_id_is_tested() -> None:
    methods = pb.DESCRIPTOR.services_by_name["MonitorService"].methods
    assert set(MUTATIONS) == {m.name for m in methods if "request_id" in m.input_type.fields_by_name}


@pytest.mark.parametrize("method", MUTATIONS)
async def test_equal_requests_have_one_effect_and_the_first_response(
    edge: LocalMonitor, stub: Any, database: str, method: str
) -> None:
    first, second = await alert(edge, "a1", Kind.DATA_DRIFT), await alert(edge, "a2", Kind.LABEL_DRIFT)
    for name in ("e1", "e2"):
        await stub.CreateExperiment(created(name))
    request, undo = {
        "SetMonitorPolicy": (
            pb.SetMonitorPolicyRequest(policy=policy(7), request_id="once"),
            lambda: stub.SetMonitorPolicy(pb.SetMonitorPolicyRequest(policy=policy(8))),
        ),
        "AcknowledgeAlert": (
            pb.AcknowledgeAlertRequest(name=first, request_id="once"),
            lambda: stub.ResolveAlert(pb.ResolveAlertRequest(name=first, reason="over")),
        ),
        "ResolveAlert": (
            pb.ResolveAlertRequest(name=first, reason="why", request_id="once"),
            lambda: stub.AcknowledgeAlert(pb.AcknowledgeAlertRequest(name=second)),
        ),
        "SetAlertSink": (
            once(sink("https://hooks.example/a")),
            lambda: stub.SetAlertSink(sink("https://hooks.example/b")),
        ),
        "DeleteAlertSink": (
            deletion("old", "once"),
            lambda: stub.SetAlertSink(sink("https://hooks.example/b", "old")),
        ),
        "SilenceAlerts": (silence(60, request_id="once"), lambda: stub.SilenceAlerts(silence(0))),
        "CreateExperiment": (
            created("new", request_id="once"),
            lambda: stub.ConcludeExperiment(concluded("new")),
        ),
        "ConcludeExperiment": (
            concluded("e1", request_id="once"),
            lambda: stub.CreateExperiment(created("e3")),
        ),
    }[method]
    await stub.SetAlertSink(sink("https://hooks.example/a", "old"))
    answers = await asyncio.gather(*(getattr(stub, method)(request, timeout=20) for _ in range(20)))
    assert [answers[0]] * 20 == answers
    await undo()
    before = await row_counts(database), await state(stub, first, second)
    assert answers[0] == await getattr(stub, method)(request), "also after later changes"
    assert before == (await row_counts(database), await state(stub, first, second))
    assert 1 == before[0]["idempotent_request"]


async def state(stub: Any, *alerts: str) -> list[Any]:
    """Everything that these methods change."""
    held = [(await stub.GetMonitorPolicy(pb.GetMonitorPolicyRequest(model=MODEL))).policy]
    held += list((await stub.ListAlertSinks(sink_pb2.ListAlertSinksRequest(parent="projects/p"))).sinks)
    listed = await stub.ListAlertSilences(sink_pb2.ListAlertSilencesRequest(parent="projects/p"))
    held += list(listed.silences)
    listing = xp.ListExperimentsRequest(parent=MODEL)
    held += (await stub.ListExperiments(listing)).experiments
    return held + [(await stub.GetAlert(pb.GetAlertRequest(name=name))).alert for name in alerts]


@pytest.mark.parametrize("method", MUTATIONS)
async def test_a_request_id_with_another_body_is_rejected(
    edge: LocalMonitor, stub: Any, database: str, method: str
) -> None:
    first, second = await alert(edge, "a1", Kind.DATA_DRIFT), await alert(edge, "a2", Kind.LABEL_DRIFT)
    for name in ("e1", "e2"):
        await stub.CreateExperiment(created(name))
    request, others = {
        "SetMonitorPolicy": (
            pb.SetMonitorPolicyRequest(policy=policy(7), request_id="once"),
            [
                pb.SetMonitorPolicyRequest(policy=policy(8), request_id="once"),
                pb.SetMonitorPolicyRequest(policy=policy(7, "projects/p/models/new"), request_id="once"),
            ],
        ),
        "AcknowledgeAlert": (
            pb.AcknowledgeAlertRequest(name=first, request_id="once"),
            [
                pb.AcknowledgeAlertRequest(name=second, request_id="once"),
                pb.AcknowledgeAlertRequest(name="projects/p/alerts/none", request_id="once"),
            ],
        ),
        "ResolveAlert": (
            pb.ResolveAlertRequest(name=first, reason="why", request_id="once"),
            [
                pb.ResolveAlertRequest(name=first, reason="another", request_id="once"),
                pb.ResolveAlertRequest(name=second, reason="why", request_id="once"),
            ],
        ),
        "SetAlertSink": (
            once(sink("https://hooks.example/a")),
            [once(sink("https://hooks.example/b")), once(sink("https://hooks.example/a", "other"))],
        ),
        "DeleteAlertSink": (deletion("old", "once"), [deletion("other", "once")]),
        "SilenceAlerts": (
            silence(60, request_id="once"),
            [silence(61, request_id="once"), silence(60, "projects/p/models/new", "once")],
        ),
        "CreateExperiment": (
            created("new", request_id="once"),
            [created("new", 2, "once"), created("newer", request_id="once")],
        ),
        "ConcludeExperiment": (
            concluded("e1", request_id="once"),
            [concluded("e1", "another", "once"), concluded("e2", request_id="once")],
        ),
    }[method]
    await stub.SetAlertSink(sink("https://hooks.example/a", "old"))
    await stub.SetAlertSink(sink("https://hooks.example/a", "other"))
    answer = await getattr(stub, method)(request)
    before = await row_counts(database), await state(stub, first, second)
    for other in others:
        assert "INVALID_ARGUMENT REQUEST_ID_REUSED" == await refused(getattr(stub, method)(other))
    assert before == (await row_counts(database), await state(stub, first, second))
    assert answer == await getattr(stub, method)(request)


async def test_a_failed_request_may_be_corrected_under_its_id(edge: LocalMonitor, stub: Any) -> None:
    name = await alert(edge, "a1", Kind.DATA_DRIFT)
    wrong = pb.SetMonitorPolicyRequest(policy=policy(7), request_id="once")
    wrong.policy.fdr = 2.0
    assert "INVALID_ARGUMENT INVALID_POLICY" == await refused(stub.SetMonitorPolicy(wrong))
    mended = pb.SetMonitorPolicyRequest(policy=policy(7), request_id="once")
    assert 7 == (await stub.SetMonitorPolicy(mended)).policy.min_predictions
    unknown = pb.AcknowledgeAlertRequest(name="projects/p/alerts/none", request_id="once")
    assert "NOT_FOUND UNKNOWN_ALERT" == await refused(stub.AcknowledgeAlert(unknown))
    asked = pb.AcknowledgeAlertRequest(name=name, request_id="once")
    assert pb.ALERT_STATE_ACKNOWLEDGED == (await stub.AcknowledgeAlert(asked)).alert.state
    long = pb.ResolveAlertRequest(name=name, reason="why", request_id="x" * 201)
    assert "INVALID_ARGUMENT INVALID_REQUEST_ID" == await refused(stub.ResolveAlert(long))


async def test_the_store_runs_a_mutation_once_per_request_id(monitor: LocalMonitor) -> None:
    effects: list[str] = []

    async def once(body: bytes, *, request_id: str = "once", method: str = "M", fails: bool = False) -> bytes:
        async def effect(records: Any) -> bytes:
            await records.set_policy(f"projects/p/models/m{len(effects)}", MonitorPolicy())
            if fails:
                raise FailedPrecondition("no")
            effects.append(body.decode())
            return f"answer {len(effects)}".encode()

        return await monitor.store.once(method, request_id, body, effect)

    with pytest.raises(FailedPrecondition):
        await once(b"a", fails=True)
    async with monitor.store.reading() as records:
        assert [] == await records.policies(), "a failed mutation leaves nothing, and its id is free"
    assert [b"answer 1"] * 10 == await asyncio.gather(*(once(b"b") for _ in range(10)))
    with pytest.raises(InvalidArgument) as reused:
        await once(b"a")
    assert "REQUEST_ID_REUSED" == reused.value.reason
    with pytest.raises(InvalidArgument) as long:
        await once(b"a", request_id="x" * 201)
    assert "INVALID_REQUEST_ID" == long.value.reason
    assert b"answer 2" == await once(b"a", method="N")
    assert [b"answer 3", b"answer 4"] == [await once(b"a", request_id=""), await once(b"a", request_id="")]
    token = current_call.set(Call("M", Principal("ann")))
    try:
        assert b"answer 5" == await once(b"a"), "ids of another caller are separate"
    finally:
        current_call.reset(token)
    assert ["b", "a", "a", "a", "a"] == effects
