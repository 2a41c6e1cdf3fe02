"""Predict end to end: features, Triton, calibration, log; and what a caller's mistakes are answered with."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest

from flywheel_common import columns
from flywheel_common.grpc.auth import missing_rows
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.kafka import topics
from flywheel_inference.permissions import PERMISSIONS
from flywheel_protos.events.v1 import prediction_pb2
from flywheel_protos.inference.v1 import inference_pb2
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.types.v1 import value_pb2
from tests.support.eventually import eventually

MODEL = "projects/test/models/late"
W = (0.5, -0.25, 1.0)
CHAMPION, CHALLENGER, SHADOW = 1, 2, 3


def score(weights: tuple[float, ...], bias: float, *inputs: float) -> float:
    x = np.array([0.0 if np.isnan(v) else v for v in inputs])
    return float(1 / (1 + np.exp(-(x @ np.array(weights) + bias))))


async def refused(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_answers_the_models_calibrated_score_for_the_features_as_served(world: Any) -> None:
    release = world.registry.release(
        1, W, calibration=model_pb2.Calibration(platt={"slope": 2.0, "intercept": -0.5})
    )
    generation = world.registry.want(champion=release)
    gateway = await world.gateway()
    await gateway.serves(generation)
    answer = await gateway.predict("UA", 3.0, "EWR", include_features=True)
    raw = score(W, 0.0, 2.0, 3.0, 2.0)
    expected = 1 / (1 + np.exp(-(2.0 * np.log(raw / (1 - raw)) - 0.5)))
    assert answer.score == pytest.approx(expected, abs=1e-5)
    assert answer.decision == (expected >= 0.5)
    assert (answer.release, answer.model_version) == (f"{MODEL}/releases/1", f"{MODEL}/versions/1")
    assert not answer.degraded
    assert answer.role == CHAMPION and answer.source == prediction_pb2.PREDICTION_SOURCE_MODEL
    assert answer.prediction_id
    features = {f.name: (f.status, f.value) for f in answer.features}
    assert features["hist__delay"] == ("PRESENT", value_pb2.Value(double_value=2.0))
    assert features["route__origin"] == ("PRESENT", value_pb2.Value(string_value="EWR"))


async def test_a_feature_that_is_not_there_counts_as_nan_and_is_named(world: Any) -> None:
    world.features.delays["AA"] = None
    gateway = await world.gateway()
    await gateway.serves(world.registry.want(champion=world.registry.release(1, W)))
    never_written = await gateway.predict("ZZ", 3.0, "nowhere")
    assert never_written.score == pytest.approx(score(W, 0.0, np.nan, 3.0, -1.0), abs=1e-5)
    assert [(f.name, f.status) for f in never_written.features] == [("hist__delay", "NOT_FOUND")]
    assert not never_written.degraded
    null = await gateway.predict("AA", 3.0, "JFK")
    assert [(f.name, f.status) for f in null.features] == [("hist__delay", "NULL")]


async def test_requests_that_arrive_together_share_batches_and_each_gets_its_own_row(world: Any) -> None:
    gateway = await world.gateway()
    await gateway.serves(world.registry.want(champion=world.registry.release(1, W)))
    miles = [float(i) / 50 for i in range(200)]
    answers = await asyncio.gather(*(gateway.predict("DL", m, "LGA") for m in miles))
    assert [a.score for a in answers] == pytest.approx([score(W, 0.0, -1.0, m, 1.0) for m in miles], abs=1e-5)
    assert sum(world.features.batches) == 200
    assert len(world.features.batches) < 150


async def test_predictions_as_of_different_times_are_looked_up_as_of_their_own(world: Any) -> None:
    gateway = await world.gateway()
    await gateway.serves(world.registry.want(champion=world.registry.release(1, W)))
    calls = []
    for i in range(20):
        request = {"miles": float(i)}
        if i % 3:
            request["as_of"] = {"seconds": 1_000 + i % 3}
        calls.append(gateway.predict("UA", **request))
    answers = await asyncio.gather(*calls)
    assert [a.score for a in answers] == pytest.approx(
        [score(W, 0.0, 2.0, float(i), 0.0) for i in range(20)], abs=1e-5
    )
    assert set(world.features.as_ofs) == {None, 1_001_000_000, 1_002_000_000}


async def test_a_callers_mistakes_are_named(world: Any) -> None:
    gateway = await world.gateway()
    await gateway.serves(world.registry.want(champion=world.registry.release(1, W)))
    value = value_pb2.Value
    good = {
        "model": MODEL,
        "entity_keys": {"carrier": value(string_value="UA")},
        "request_fields": {"miles": value(double_value=1.0), "origin": value(string_value="JFK")},
    }

    async def reason(**changes: Any) -> tuple[str, str]:
        error = await refused(
            gateway.stub.Predict(inference_pb2.PredictRequest(**{**good, **changes}), timeout=5)
        )
        return error.code.name, error.reason

    assert await reason(entity_keys={}) == ("INVALID_ARGUMENT", "MISSING_JOIN_KEY")
    assert await reason(entity_keys={"carrier": value()}) == ("INVALID_ARGUMENT", "MISSING_JOIN_KEY")
    assert await reason(request_fields={"miles": value(double_value=1.0)}) == (
        "INVALID_ARGUMENT",
        "MISSING_REQUEST_FIELD",
    )
    assert await reason(entity_keys={"carrier": value(double_value=1.5)}) == (
        "INVALID_ARGUMENT",
        "WRONG_TYPE",
    )
    wrong = {"miles": value(string_value="far"), "origin": value(string_value="JFK")}
    assert await reason(request_fields=wrong) == ("INVALID_ARGUMENT", "WRONG_TYPE")
    assert await reason(model="projects/test/models/unknown") == ("NOT_FOUND", "UNKNOWN_MODEL")
    assert await reason(model="late") == ("INVALID_ARGUMENT", "INVALID_NAME")
    assert await reason(prediction_id="x" * 129) == ("INVALID_ARGUMENT", "INVALID_PREDICTION_ID")


async def test_more_calls_than_it_admits_are_refused_with_a_delay(world: Any) -> None:
    gateway = await world.gateway(max_in_flight=4)
    await gateway.serves(world.registry.want(champion=world.registry.release(1, W)))
    world.features.hold = asyncio.Event()
    calls = [asyncio.create_task(gateway.predict()) for _ in range(12)]
    await eventually(lambda: sum(call.done() for call in calls) == 8)
    world.features.hold.set()
    refusals = [
        from_rpc_error(r)
        for r in await asyncio.gather(*calls, return_exceptions=True)
        if isinstance(r, Exception)
    ]
    assert [(e.code, e.reason) for e in refusals] == [(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")] * 8
    assert all(0 < e.retry_after_seconds < 1 for e in refusals)
    assert not any(call.result().degraded for call in calls if call.exception() is None)


async def test_every_answer_is_logged_in_the_partition_of_its_id(world_with_kafka: Any) -> None:
    world = world_with_kafka
    release = world.registry.release(1, W, segment_keys=["carrier"])
    gateway = await world.gateway()
    await gateway.serves(world.registry.want(champion=release))
    answers = await asyncio.gather(
        *(gateway.predict("UA", float(i), as_of={"seconds": 5_000 + i}) for i in range(30))
    )
    ids = {a.prediction_id: i for i, a in enumerate(answers)}
    found = await world.logged(topics.PREDICTION_LOGGED, set(ids))
    for prediction, i in ids.items():
        ((partition, batch, row),) = found[prediction]
        assert partition == topics.partition_for(prediction, 4)
        assert batch.role == CHAMPION and batch.release == f"{MODEL}/releases/1" and batch.model == MODEL
        served = {c.name: columns.to_numpy(c) for c in batch.features.columns}
        assert served["hist__delay"][0][row] == 2.0
        assert served["trip__miles"][0][row] == float(i)
        assert served["route__origin"][0][row] == "JFK"
        assert np.frombuffer(batch.event_times, "<i8")[row] == (5_000 + i) * 1_000_000
        assert np.frombuffer(batch.scores, "<f8")[row] == pytest.approx(answers[i].score)
        assert batch.decisions[row] == answers[i].decision
        assert batch.sources[row] == prediction_pb2.PREDICTION_SOURCE_MODEL
        assert np.frombuffer(batch.latencies_ms, "<f4")[row] > 0
        assert batch.segments[row] == "carrier=UA" and batch.subjects[row] == "UA"
        assert columns.to_numpy(batch.entities.columns[0])[0][row] == "UA"
        fields = {c.name: columns.to_numpy(c)[0][row] for c in batch.request_fields.columns}
        assert fields == {"miles": float(i), "origin": "JFK"}
        (applied,) = batch.applied_offsets.columns
        assert (applied.name, columns.to_numpy(applied)[0][row].tolist()) == ("hist@1", [0, i])


async def test_outcomes_are_in_kafka_when_they_are_acknowledged(world_with_kafka: Any) -> None:
    world = world_with_kafka
    gateway = await world.gateway()
    outcome = inference_pb2.Outcome
    ids = [f"outcome-test-{i}" for i in range(20)]
    request = inference_pb2.RecordOutcomeRequest(
        model=MODEL,
        outcomes=[
            outcome(prediction_id=p, name="label", value=i % 2, event_time={"seconds": 60 + i})
            for i, p in enumerate(ids)
        ]
        + [outcome(prediction_id=ids[0], name="revenue", value=9.5)],
    )
    assert (await gateway.stub.RecordOutcome(request, timeout=20)).accepted_count == 21
    found = await world.logged(topics.OUTCOME_RECORDED, set(ids))
    for i, prediction in enumerate(ids):
        labels = [(p, b, r) for p, b, r in found[prediction] if b.name == "label"]
        ((partition, batch, row),) = labels
        assert partition == topics.partition_for(prediction, 4)
        assert np.frombuffer(batch.values, "<f8")[row] == i % 2
        assert np.frombuffer(batch.event_times, "<i8")[row] == (60 + i) * 1_000_000
        assert batch.outcome_ids[row] == f"{prediction}:label"
    assert [b.name for _, b, _ in found[ids[0]]].count("revenue") == 1

    async def reason(**fields: Any) -> tuple[str, str]:
        bad = inference_pb2.RecordOutcomeRequest(model=MODEL, outcomes=[outcome(**fields)])
        error = await refused(gateway.stub.RecordOutcome(bad, timeout=5))
        return error.code.name, error.reason

    assert await reason(name="label", value=1) == ("INVALID_ARGUMENT", "MISSING_PREDICTION_ID")
    assert await reason(prediction_id="x", name="label", value=float("nan")) == (
        "INVALID_ARGUMENT",
        "INVALID_VALUE",
    )


async def test_without_kafka_outcomes_are_refused_and_predictions_go_on(world: Any) -> None:
    gateway = await world.gateway(outcome_timeout_seconds=0.5)
    await gateway.serves(world.registry.want(champion=world.registry.release(1, W)))
    request = inference_pb2.RecordOutcomeRequest(
        model=MODEL, outcomes=[inference_pb2.Outcome(prediction_id="p", name="label", value=1)]
    )
    error = await refused(gateway.stub.RecordOutcome(request, timeout=10))
    assert (error.code.name, error.reason) == ("UNAVAILABLE", "KAFKA_UNAVAILABLE")
    assert not (await gateway.predict()).degraded


async def test_the_shadow_sees_what_the_champion_saw_and_nobody_sees_its_answer(
    world_with_kafka: Any,
) -> None:
    world = world_with_kafka
    other = (-1.0, 0.5, 0.25)
    gateway = await world.gateway()
    generation = world.registry.want(
        champion=world.registry.release(1, W),
        challenger=world.registry.release(2, other),
        rollout="projects/test/r",
        shadow_percent=100,
    )
    await gateway.serves(generation)
    answers = await asyncio.gather(*(gateway.predict("UA", float(i) / 10) for i in range(20)))
    assert {a.release for a in answers} == {f"{MODEL}/releases/1"}
    lookups = sum(world.features.batches)
    found = await world.logged(topics.PREDICTION_LOGGED, {a.prediction_id for a in answers})
    for _ in range(100):
        if all(len(rows) == 2 for rows in found.values()):
            break
        found = await world.logged(topics.PREDICTION_LOGGED, {a.prediction_id for a in answers})
    for i, answer in enumerate(answers):
        by_role = {batch.role: (batch, row) for _, batch, row in found[answer.prediction_id]}
        assert set(by_role) == {CHAMPION, SHADOW}
        batch, row = by_role[SHADOW]
        assert batch.release == f"{MODEL}/releases/2" and batch.rollout == "projects/test/r"
        assert np.frombuffer(batch.scores, "<f8")[row] == pytest.approx(
            score(other, 0.0, 2.0, i / 10, 0.0), abs=1e-5
        )
        (applied,) = batch.applied_offsets.columns
        assert columns.to_numpy(applied)[0][row].tolist() == [0, i // 10]
    assert lookups == 20, "the shadow uses the champion's features again"


async def test_a_canary_answers_its_share_and_a_subject_stays_where_it_is(world: Any) -> None:
    gateway = await world.gateway()
    releases = {
        "champion": world.registry.release(1, W),
        "challenger": world.registry.release(2, (0.0, 0.0, 0.0), 3.0),
    }
    answered: dict[float, set[str]] = {}
    subjects = [f"subject-{i}" for i in range(200)]
    for percent in (20.0, 50.0):
        await gateway.serves(
            world.registry.want(**releases, rollout="projects/test/r", challenger_percent=percent)
        )
        answers = await asyncio.gather(*(gateway.predict(subject=s) for s in subjects))
        for answer in answers:
            challenged = answer.role == CHALLENGER
            assert answer.release == f"{MODEL}/releases/{2 if challenged else 1}"
            own = score((0.0, 0.0, 0.0), 3.0, 0, 0, 0) if challenged else score(W, 0.0, 2.0, 1.0, 0.0)
            assert answer.score == pytest.approx(own, abs=1e-5)
        answered[percent] = {s for s, a in zip(subjects, answers, strict=True) if a.role == CHALLENGER}
    assert 20 <= len(answered[20.0]) <= 60
    assert 75 <= len(answered[50.0]) <= 125
    assert answered[20.0] <= answered[50.0]


async def test_every_rpc_has_a_row_in_the_permission_table(world: Any) -> None:
    gateway = await world.gateway()
    assert missing_rows(gateway.server.methods, PERMISSIONS) == []
