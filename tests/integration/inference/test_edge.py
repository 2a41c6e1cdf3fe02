"""The RPCs of a gateway on in-memory backends: conversion, status codes and reasons, repeated ids."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import grpc
import numpy as np
import pytest

from flywheel_common.grpc.auth import missing_rows
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.kafka import topics
from flywheel_inference.outcomes.row import OutcomeRow
from flywheel_inference.permissions import PERMISSIONS
from flywheel_protos.inference.v1 import inference_pb2 as pb
from flywheel_protos.types.v1.value_pb2 import Value
from tests.support.builders.inference import MODEL, ORIGINS, expected_score
from tests.support.eventually import eventually
from tests.support.servers.inference import PARTITIONS, Gateway, MemoryDeployment

W = (0.5, -0.25, 1.0)


async def refusal(call: Any) -> tuple[str, str]:
    """Status code and reason of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    return error.code.name, error.reason


async def serving_gateway(deployment: MemoryDeployment) -> Gateway:
    return await deployment.gateway_serving(deployment.registry.release(101, W))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"entity_keys": {}}, ("INVALID_ARGUMENT", "MISSING_JOIN_KEY")),
        ({"entity_keys": {"carrier": Value()}}, ("INVALID_ARGUMENT", "MISSING_JOIN_KEY")),
        ({"entity_keys": {"carrier": Value(double_value=1.5)}}, ("INVALID_ARGUMENT", "WRONG_TYPE")),
        (
            {"request_fields": {"miles": Value(double_value=1.0)}},
            ("INVALID_ARGUMENT", "MISSING_REQUEST_FIELD"),
        ),
        (
            {"request_fields": {"miles": Value(string_value="far"), "origin": Value(string_value="JFK")}},
            ("INVALID_ARGUMENT", "WRONG_TYPE"),
        ),
        ({"model": "projects/test/models/unknown"}, ("NOT_FOUND", "UNKNOWN_MODEL")),
        ({"model": "late"}, ("INVALID_ARGUMENT", "INVALID_NAME")),
        ({"prediction_id": "x" * 129}, ("INVALID_ARGUMENT", "INVALID_PREDICTION_ID")),
        ({"prediction_id": "a\0b"}, ("INVALID_ARGUMENT", "INVALID_TEXT")),
        ({"subject": "a\0b"}, ("INVALID_ARGUMENT", "INVALID_TEXT")),
        ({"entity_keys": {"carrier": Value(string_value="U\0A")}}, ("INVALID_ARGUMENT", "INVALID_TEXT")),
        (
            {"request_fields": {"miles": Value(double_value=1.0), "origin": Value(string_value="J\0")}},
            ("INVALID_ARGUMENT", "INVALID_TEXT"),
        ),
    ],
)
async def test_invalid_predict_requests_are_refused_with_a_reason(
    memory_deployment: MemoryDeployment, changes: dict[str, Any], expected: tuple[str, str]
) -> None:
    gateway = await serving_gateway(memory_deployment)
    valid = {
        "model": MODEL,
        "entity_keys": {"carrier": Value(string_value="UA")},
        "request_fields": {"miles": Value(double_value=1.0), "origin": Value(string_value="JFK")},
    }
    assert not (await gateway.stub.Predict(pb.PredictRequest(**valid), timeout=5)).degraded
    request = pb.PredictRequest(**{**valid, **changes})
    assert await refusal(gateway.stub.Predict(request, timeout=5)) == expected


async def test_every_caller_gets_the_score_of_its_own_row(memory_deployment: MemoryDeployment) -> None:
    gateway = await serving_gateway(memory_deployment)
    sent = [(carrier, i / 10, ORIGINS[i % 3]) for i, carrier in enumerate(["UA", "DL"] * 20)]
    answers = await asyncio.gather(*(gateway.predict(*row) for row in sent))
    delays = {"UA": 2.0, "DL": -1.0}
    expected = [
        expected_score(W, 0.0, [delays[carrier], miles, ORIGINS.index(origin)])
        for carrier, miles, origin in sent
    ]
    assert [answer.score for answer in answers] == pytest.approx(expected, abs=1e-5)
    assert {(answer.release, answer.degraded) for answer in answers} == {(f"{MODEL}/releases/101", False)}


async def test_a_repeated_prediction_id_gets_the_same_score_and_is_logged(
    memory_deployment: MemoryDeployment,
) -> None:
    own = uuid4().hex
    gateway = await serving_gateway(memory_deployment)
    first, again = [await gateway.predict("UA", 3.0, "LGA", prediction_id=own) for _ in range(2)]
    assert (own, first.score) == (first.prediction_id, again.score) == (again.prediction_id, again.score)
    await gateway.close()
    rows = (await memory_deployment.logged(topics.PREDICTION_LOGGED, {own}))[own]
    assert [partition for partition, _, _ in rows] == [topics.partition_for(own, PARTITIONS)] * 2
    assert [float(np.frombuffer(batch.scores, "<f8")[row]) for _, batch, row in rows] == [first.score] * 2


async def test_an_answer_too_large_for_the_log_is_counted_and_others_logged(
    memory_deployment: MemoryDeployment,
) -> None:
    gateway = await serving_gateway(memory_deployment)
    memory_deployment.features.padding = "x" * (9 << 20)
    large = await gateway.predict("UA", 1.0, "JFK", timeout=30)
    assert large.score == pytest.approx(expected_score(W, 0.0, [2.0, 1.0, -1]), abs=1e-5)
    memory_deployment.features.padding = ""

    async def counted() -> bool:
        status = await gateway.stub.GetServingStatus(pb.GetServingStatusRequest())
        return (status.logged_count, status.dropped_count) == (0, 1)

    await eventually(counted, within=20)
    small = (await gateway.predict()).prediction_id
    assert set(await memory_deployment.logged(topics.PREDICTION_LOGGED, {small})) == {small}


async def test_outcomes_are_stored_as_often_as_they_are_sent(memory_deployment: MemoryDeployment) -> None:
    gateway = await serving_gateway(memory_deployment)
    ids = [uuid4().hex for _ in range(10)]
    outcomes = [
        pb.Outcome(prediction_id=p, name="label", value=i % 2, event_time={"seconds": 60 + i})
        for i, p in enumerate(ids)
    ]
    outcomes.append(
        pb.Outcome(
            prediction_id=ids[0], name="revenue", value=9.5, event_time={"seconds": 99}, outcome_id="mine"
        )
    )
    request = pb.RecordOutcomeRequest(model=MODEL, outcomes=outcomes)
    for _ in range(2):
        assert (await gateway.stub.RecordOutcome(request, timeout=20)).accepted_count == 11
    rows = [
        OutcomeRow(p, "label", float(i % 2), (60 + i) * 1_000_000, f"{p}:label") for i, p in enumerate(ids)
    ]
    rows.append(OutcomeRow(ids[0], "revenue", 9.5, 99_000_000, "mine"))
    assert memory_deployment.outcomes.stored == [(MODEL, row) for row in rows] * 2


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (pb.Outcome(name="label", value=1), "MISSING_PREDICTION_ID"),
        (pb.Outcome(prediction_id="x"), "INVALID_VALUE"),
        (pb.Outcome(prediction_id="x", name="label", value=float("nan")), "INVALID_VALUE"),
        (pb.Outcome(prediction_id="x", name="label", value=2.0), "INVALID_VALUE"),
        (pb.Outcome(prediction_id="x", name="label", value=-1.0), "INVALID_VALUE"),
        (pb.Outcome(prediction_id="x\0", name="label", value=1), "INVALID_TEXT"),
        (pb.Outcome(prediction_id="x", name="label\0", value=1), "INVALID_TEXT"),
        (pb.Outcome(prediction_id="x", name="label", value=1, outcome_id="\0"), "INVALID_TEXT"),
    ],
)
async def test_one_invalid_outcome_refuses_the_whole_call(
    memory_deployment: MemoryDeployment, outcome: pb.Outcome, reason: str
) -> None:
    gateway = await serving_gateway(memory_deployment)
    valid = pb.Outcome(prediction_id="y", name="label", value=1)
    request = pb.RecordOutcomeRequest(model=MODEL, outcomes=[valid, outcome])
    assert await refusal(gateway.stub.RecordOutcome(request, timeout=20)) == ("INVALID_ARGUMENT", reason)
    assert memory_deployment.outcomes.stored == []


async def test_outcomes_of_an_unknown_model_are_refused_also_after_a_boot_without_registry(
    memory_deployment: MemoryDeployment,
) -> None:
    first = await serving_gateway(memory_deployment)
    await first.close()
    await memory_deployment.registry_server.stop()
    # The model's file cannot be loaded either: what counts is the saved desired state.
    memory_deployment.models.down = True
    gateway = await memory_deployment.gateway()
    outcome = pb.Outcome(prediction_id="y", name="label", value=1)

    async def record(model: str) -> Any:
        return await gateway.stub.RecordOutcome(
            pb.RecordOutcomeRequest(model=model, outcomes=[outcome]), timeout=20
        )

    assert await refusal(record("projects/test/models/other")) == ("NOT_FOUND", "UNKNOWN_MODEL")
    assert await refusal(record("projects/other/models/late")) == ("NOT_FOUND", "UNKNOWN_MODEL")
    assert memory_deployment.outcomes.stored == []
    assert (await record(MODEL)).accepted_count == 1


async def test_a_gateway_that_never_saw_a_registry_accepts_no_outcome(
    memory_deployment: MemoryDeployment,
) -> None:
    await memory_deployment.registry_server.stop()
    gateway = await memory_deployment.gateway()
    request = pb.RecordOutcomeRequest(model=MODEL, outcomes=[pb.Outcome(prediction_id="y", name="label")])
    request.outcomes[0].value = 1
    refused = await refusal(gateway.stub.RecordOutcome(request, timeout=20))
    assert refused == ("UNAVAILABLE", "NO_DESIRED_STATE")


async def test_too_many_outcomes_are_refused(memory_deployment: MemoryDeployment) -> None:
    gateway = await serving_gateway(memory_deployment)
    outcome = pb.Outcome(prediction_id="y", name="label", value=1)
    request = pb.RecordOutcomeRequest(model=MODEL, outcomes=[outcome] * 10_001)
    assert await refusal(gateway.stub.RecordOutcome(request, timeout=20)) == (
        "INVALID_ARGUMENT",
        "TOO_MANY_OUTCOMES",
    )


async def test_a_failed_outcome_store_is_unavailable(memory_deployment: MemoryDeployment) -> None:
    gateway = await serving_gateway(memory_deployment)
    memory_deployment.outcomes.down = True
    request = pb.RecordOutcomeRequest(
        model=MODEL, outcomes=[pb.Outcome(prediction_id="y", name="label", value=1)]
    )
    assert await refusal(gateway.stub.RecordOutcome(request, timeout=20)) == (
        "UNAVAILABLE",
        "KAFKA_UNAVAILABLE",
    )


async def test_every_rpc_has_a_row_in_the_permission_table(memory_deployment: MemoryDeployment) -> None:
    gateway = await memory_deployment.gateway()
    assert missing_rows(gateway.server.methods, PERMISSIONS) == []
