"""Predict, shadow copies, canaries and outcomes on real Triton and Kafka."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest

from flywheel_common import columns
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.kafka import topics
from flywheel_inference.routing.route import CHALLENGER, CHAMPION, SHADOW
from flywheel_protos.events.v1 import prediction_pb2
from flywheel_protos.inference.v1 import inference_pb2
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.types.v1 import value_pb2
from tests.support.builders.inference import MODEL, expected_score
from tests.support.eventually import eventually
from tests.support.servers.inference import Deployment

W = (0.5, -0.25, 1.0)


def score(weights: tuple[float, ...], bias: float, *inputs: float) -> float:
    return expected_score(weights, bias, inputs)


async def test_predict_returns_the_calibrated_score_of_the_served_features(deployment: Deployment) -> None:
    release = deployment.registry.release(
        1, W, calibration=model_pb2.Calibration(platt={"slope": 2.0, "intercept": -0.5})
    )
    generation = deployment.registry.want(champion=release)
    gateway = await deployment.gateway()
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


async def test_a_missing_feature_becomes_nan_and_is_listed_in_the_answer(deployment: Deployment) -> None:
    deployment.features.delays["AA"] = None
    gateway = await deployment.gateway_serving(deployment.registry.release(1, W))
    never_written = await gateway.predict("ZZ", 3.0, "nowhere")
    assert never_written.score == pytest.approx(score(W, 0.0, np.nan, 3.0, -1.0), abs=1e-5)
    assert [(f.name, f.status) for f in never_written.features] == [("hist__delay", "NOT_FOUND")]
    assert not never_written.degraded
    null = await gateway.predict("AA", 3.0, "JFK")
    assert [(f.name, f.status) for f in null.features] == [("hist__delay", "NULL")]


async def test_concurrent_requests_share_batches_and_get_their_own_rows(deployment: Deployment) -> None:
    gateway = await deployment.gateway_serving(deployment.registry.release(1, W))
    miles = [float(i) / 50 for i in range(200)]
    answers = await asyncio.gather(*(gateway.predict("DL", m, "LGA") for m in miles))
    assert [a.score for a in answers] == pytest.approx([score(W, 0.0, -1.0, m, 1.0) for m in miles], abs=1e-5)
    assert sum(deployment.features.batches) == 200
    assert len(deployment.features.batches) < 150


async def test_each_prediction_reads_features_as_of_its_own_time(deployment: Deployment) -> None:
    gateway = await deployment.gateway_serving(deployment.registry.release(1, W))
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
    assert set(deployment.features.as_ofs) == {None, 1_001_000_000, 1_002_000_000}


async def test_predictions_beyond_the_limit_are_refused_with_a_retry_delay(deployment: Deployment) -> None:
    gateway = await deployment.gateway_serving(deployment.registry.release(1, W), max_in_flight=4)
    deployment.features.hold = asyncio.Event()
    calls = [asyncio.create_task(gateway.predict()) for _ in range(12)]
    await eventually(lambda: sum(call.done() for call in calls) == 8)
    deployment.features.hold.set()
    refusals = [
        from_rpc_error(r)
        for r in await asyncio.gather(*calls, return_exceptions=True)
        if isinstance(r, Exception)
    ]
    assert [(e.code, e.reason) for e in refusals] == [(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")] * 8
    assert all(0 < e.retry_after_seconds < 1 for e in refusals)
    assert not any(call.result().degraded for call in calls if call.exception() is None)


async def test_every_answer_is_logged_in_the_partition_of_its_id(deployment_with_kafka: Deployment) -> None:
    deployment = deployment_with_kafka
    release = deployment.registry.release(1, W, segment_keys=["carrier"])
    gateway = await deployment.gateway_serving(release)
    answers = await asyncio.gather(
        *(gateway.predict("UA", float(i), as_of={"seconds": 5_000 + i}) for i in range(30))
    )
    ids = {a.prediction_id: i for i, a in enumerate(answers)}
    found = await deployment.logged(topics.PREDICTION_LOGGED, set(ids))
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


async def test_answers_are_logged_before_a_stopped_gateway_exits(
    deployment_with_kafka: Deployment,
) -> None:
    deployment = deployment_with_kafka
    gateway = await deployment.gateway_serving(deployment.registry.release(1, W))
    answers = await asyncio.gather(*(gateway.predict("UA", i / 10) for i in range(40)))
    await gateway.close()
    scores = {answer.prediction_id: answer.score for answer in answers}
    for prediction, rows in (await deployment.logged(topics.PREDICTION_LOGGED, set(scores))).items():
        ((partition, batch, row),) = rows
        assert partition == topics.partition_for(prediction, 4)
        assert np.frombuffer(batch.scores, "<f8")[row] == scores[prediction]


async def test_acknowledged_outcomes_are_in_kafka(deployment_with_kafka: Deployment) -> None:
    deployment = deployment_with_kafka
    gateway = await deployment.gateway_serving(deployment.registry.release(1, W))
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
    found = await deployment.logged(topics.OUTCOME_RECORDED, set(ids))
    for i, prediction in enumerate(ids):
        labels = [(p, b, r) for p, b, r in found[prediction] if b.name == "label"]
        ((partition, batch, row),) = labels
        assert partition == topics.partition_for(prediction, 4)
        assert np.frombuffer(batch.values, "<f8")[row] == i % 2
        assert np.frombuffer(batch.event_times, "<i8")[row] == (60 + i) * 1_000_000
        assert batch.outcome_ids[row] == f"{prediction}:label"
    assert [b.name for _, b, _ in found[ids[0]]].count("revenue") == 1


async def test_without_kafka_outcomes_are_refused_and_predictions_work(deployment: Deployment) -> None:
    gateway = await deployment.gateway_serving(deployment.registry.release(1, W), outcome_timeout_seconds=0.5)
    request = inference_pb2.RecordOutcomeRequest(
        model=MODEL, outcomes=[inference_pb2.Outcome(prediction_id="p", name="label", value=1)]
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub.RecordOutcome(request, timeout=10)
    error = from_rpc_error(caught.value)
    assert (error.code.name, error.reason) == ("UNAVAILABLE", "KAFKA_UNAVAILABLE")
    assert not (await gateway.predict()).degraded


async def test_shadow_scores_use_the_features_of_the_champion(deployment_with_kafka: Deployment) -> None:
    deployment = deployment_with_kafka
    other = (-1.0, 0.5, 0.25)
    gateway = await deployment.gateway()
    generation = deployment.registry.want(
        champion=deployment.registry.release(1, W),
        challenger=deployment.registry.release(2, other),
        rollout="projects/test/r",
        shadow_percent=100,
    )
    await gateway.serves(generation)
    answers = await asyncio.gather(*(gateway.predict("UA", float(i) / 10) for i in range(20)))
    assert {a.release for a in answers} == {f"{MODEL}/releases/1"}
    lookups = sum(deployment.features.batches)
    found = await deployment.logged(topics.PREDICTION_LOGGED, {a.prediction_id for a in answers}, each=2)
    for i, answer in enumerate(answers):
        by_role = {batch.role: (batch, row) for _, batch, row in found[answer.prediction_id]}
        assert set(by_role) == {CHAMPION, SHADOW}
        batch, row = by_role[SHADOW]
        assert batch.release == f"{MODEL}/releases/2" and batch.rollout == "projects/test/r"
        assert {generation} == {other.generation for other, _ in by_role.values()}
        assert np.frombuffer(batch.scores, "<f8")[row] == pytest.approx(
            score(other, 0.0, 2.0, i / 10, 0.0), abs=1e-5
        )
        (applied,) = batch.applied_offsets.columns
        assert columns.to_numpy(applied)[0][row].tolist() == [0, i // 10]
    assert lookups == 20, "the shadow reuses the features of the champion"


async def test_a_canary_gets_its_share_and_keeps_its_subjects_as_it_grows(deployment: Deployment) -> None:
    gateway = await deployment.gateway()
    releases = {
        "champion": deployment.registry.release(1, W),
        "challenger": deployment.registry.release(2, (0.0, 0.0, 0.0), 3.0),
    }
    answered: dict[float, set[str]] = {}
    subjects = [f"subject-{i}" for i in range(200)]
    for percent in (20.0, 50.0):
        await gateway.serves(
            deployment.registry.want(**releases, rollout="projects/test/r", challenger_percent=percent)
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
