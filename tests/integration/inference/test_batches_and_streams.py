"""BatchPredict and StreamPredict: answers equal those of Predict, errors are of one request, bounds hold."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest

import flywheel as fw
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.grpc.health import SERVING
from flywheel_protos.inference.v1 import inference_pb2 as pb
from flywheel_protos.types.v1.value_pb2 import Value
from tests.support.builders.inference import MODEL, ORIGINS, expected_score
from tests.support.eventually import eventually
from tests.support.servers.inference import Gateway, MemoryDeployment

W = (0.5, -0.25, 1.0)
FUTURE = 4_000_000_000


async def serving_gateway(deployment: MemoryDeployment, **settings: Any) -> Gateway:
    return await deployment.gateway_serving(deployment.registry.release(101, W), **settings)


def request(
    miles: float = 1.0, *, carrier: str = "UA", origin: str = "JFK", **fields: Any
) -> pb.PredictRequest:
    return pb.PredictRequest(
        entity_keys={"carrier": Value(string_value=carrier)},
        request_fields={"miles": Value(double_value=miles), "origin": Value(string_value=origin)},
        **fields,
    )


def random_request(chance: random.Random) -> pb.PredictRequest:
    """A request in which each field is valid most of the time."""

    def one(valid: Any, *others: Any) -> Any:
        return valid if chance.random() < 0.85 else chance.choice(others)

    text = Value(string_value=chance.choice(["UA", "DL", "ZZ"]))
    made = pb.PredictRequest(
        model=one(MODEL, "", "projects/test/models/unknown", "late"),
        subject=one("", "s", "a\0b"),
        prediction_id=one("", "p", "x" * 129),
        include_features=chance.random() < 0.3,
        entity_keys=one({"carrier": text}, {}, {"carrier": Value()}, {"carrier": Value(int64_value=3)}),
    )
    miles = one(Value(double_value=chance.uniform(-3, 3)), Value(), Value(string_value="far"))
    made.request_fields["miles"].CopyFrom(miles)
    if chance.random() < 0.95:
        made.request_fields["origin"].string_value = one(chance.choice(ORIGINS), "nowhere", "\0")
    if chance.random() < 0.2:
        made.as_of.FromSeconds(one(1_700_000_000, FUTURE, 0))
    return made


async def alone(gateway: Gateway, sent: pb.PredictRequest) -> pb.PredictResult:
    """The result of Predict in the form of a batch's result."""
    try:
        return pb.PredictResult(response=await gateway.stub.Predict(sent, timeout=20))
    except grpc.aio.AioRpcError as failed:
        error = from_rpc_error(failed)
        return pb.PredictResult(
            error=pb.PredictError(
                code=error.code.value[0], reason=error.reason, message=error.message, metadata=error.metadata
            )
        )


def comparable(result: pb.PredictResult, sent: pb.PredictRequest) -> pb.PredictResult:
    """Without durations, generated ids and the current time."""
    if result.error.reason == "OUT_OF_RANGE":
        result.error.ClearField("message")
        result.error.metadata.pop("latest", "")
    if result.HasField("response"):
        result.response.ClearField("timing")
        if not sent.prediction_id:
            assert result.response.prediction_id
            result.response.prediction_id = ""
    return result


@pytest.mark.parametrize("seed", range(3))
async def test_batches_and_streams_answer_as_predict_does_row_by_row(
    memory_deployment: MemoryDeployment, seed: int
) -> None:
    gateway = await serving_gateway(memory_deployment)
    chance = random.Random(seed)
    sent = [random_request(chance) for _ in range(150)]
    expected = [comparable(await alone(gateway, one), one) for one in sent]
    kinds = {result.error.reason for result in expected}
    assert {"", "MISSING_JOIN_KEY", "WRONG_TYPE", "INVALID_TEXT", "UNKNOWN_MODEL"} <= kinds

    batch = await gateway.stub.BatchPredict(pb.BatchPredictRequest(requests=sent), timeout=20)
    assert [comparable(r, s) for r, s in zip(batch.results, sent, strict=True)] == expected

    streamed = {}
    numbered = [pb.StreamPredictRequest(id=str(i), request=one) for i, one in enumerate(sent)]
    async for answer in gateway.stub.StreamPredict(iter(numbered), timeout=20):
        assert answer.id not in streamed
        streamed[answer.id] = answer.result
    assert [comparable(streamed[str(i)], s) for i, s in enumerate(sent)] == expected


async def test_ten_thousand_rows_get_their_own_scores_and_share_batches(
    memory_deployment: MemoryDeployment,
) -> None:
    gateway = await serving_gateway(memory_deployment)
    memory_deployment.features.batches.clear()
    miles = np.linspace(-3, 3, 10_000)
    sent = [request(m, prediction_id=f"row-{i}") for i, m in enumerate(miles.tolist())]
    batch = await gateway.stub.BatchPredict(pb.BatchPredictRequest(model=MODEL, requests=sent), timeout=60)
    scores = [r.response.score for r in batch.results]
    expected = [expected_score(W, 0.0, (2.0, m, 0.0)) for m in miles.tolist()]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert [r.response.prediction_id for r in batch.results] == [s.prediction_id for s in sent]
    assert not any(r.response.degraded for r in batch.results)
    assert max(memory_deployment.features.batches) <= 256
    assert len(memory_deployment.features.batches) < 200
    await eventually(lambda: memory_deployment.log_rows() == 10_000)


async def test_a_batch_above_ten_thousand_rows_is_refused_whole(memory_deployment: MemoryDeployment) -> None:
    gateway = await serving_gateway(memory_deployment)
    sent = pb.BatchPredictRequest(model=MODEL, requests=[request()] * 10_001)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub.BatchPredict(sent, timeout=10)
    error = from_rpc_error(caught.value)
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "TOO_MANY_REQUESTS")
    assert error.metadata == {"limit": "10000"}


async def test_batches_leave_places_to_single_calls(memory_deployment: MemoryDeployment) -> None:
    gateway = await serving_gateway(
        memory_deployment, max_in_flight=40, bulk_in_flight=30, batch_max_rows=8, max_batches=2
    )
    memory_deployment.features.hold = asyncio.Event()
    sent = pb.BatchPredictRequest(model=MODEL, requests=[request(i) for i in range(100)])
    batches = [asyncio.ensure_future(gateway.stub.BatchPredict(sent, timeout=20)) for _ in range(2)]
    await eventually(lambda: gateway.server.admission.unary == 2)
    await asyncio.sleep(0.1)
    single = asyncio.ensure_future(gateway.predict(timeout=20))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub.BatchPredict(sent, timeout=10)
    refused = from_rpc_error(caught.value)
    assert (refused.code.name, refused.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    memory_deployment.features.hold.set()
    assert not (await single).degraded
    for batch in batches:
        assert [r.WhichOneof("result") for r in (await batch).results] == ["response"] * 100


async def test_rows_that_the_deadline_does_not_reach_have_an_error(
    memory_deployment: MemoryDeployment,
) -> None:
    gateway = await serving_gateway(memory_deployment, batch_max_rows=16, bulk_in_flight=16)
    memory_deployment.features.seconds = 0.5
    sent = pb.BatchPredictRequest(model=MODEL, requests=[request(i) for i in range(2_000)])
    results = (await gateway.stub.BatchPredict(sent, timeout=6)).results
    reached = [r.WhichOneof("result") == "response" for r in results]
    first_missed = reached.index(False)
    assert first_missed >= 16
    assert {(r.error.code, r.error.reason) for r in results[first_missed + 16 :]} == {(4, "NOT_REACHED")}


async def test_results_that_are_too_large_together_become_errors(memory_deployment: MemoryDeployment) -> None:
    gateway = await serving_gateway(memory_deployment, max_response_bytes=100_000, bulk_in_flight=4)
    sent = [request(i, include_features=True) for i in range(1_000)]
    response = await gateway.stub.BatchPredict(pb.BatchPredictRequest(model=MODEL, requests=sent), timeout=20)
    assert 80_000 < response.ByteSize() < 300_000
    answered = [r.HasField("response") for r in response.results]
    assert 100 < sum(answered) < 1_000
    last = response.results[-1].error
    assert (last.code, last.reason) == (8, "RESPONSE_TOO_LARGE")
    assert last.metadata["limit_bytes"] == "100000" and last.retry_delay.ToMilliseconds() > 0


async def test_a_stream_reads_no_further_while_its_answers_wait(memory_deployment: MemoryDeployment) -> None:
    gateway = await serving_gateway(memory_deployment, stream_in_flight=8)
    memory_deployment.features.hold = asyncio.Event()
    sent = 0

    async def requests() -> AsyncIterator[pb.StreamPredictRequest]:
        nonlocal sent
        # Larger than the flow control window of the transport holds.
        for i in range(400):
            sent += 1
            yield pb.StreamPredictRequest(id=str(i), request=request(i, model=MODEL, subject="s" * 50_000))

    call = gateway.stub.StreamPredict(requests(), timeout=60)
    first = asyncio.ensure_future(call.read())
    await asyncio.sleep(0.5)
    assert sent < 300
    assert not first.done()
    memory_deployment.features.hold.set()
    ids = {(await first).id}
    while (answer := await call.read()) is not grpc.aio.EOF:
        ids.add(answer.id)
        assert not answer.result.response.degraded
    assert ids == {str(i) for i in range(400)}


async def test_a_fast_answer_overtakes_a_slow_one_in_a_stream(memory_deployment: MemoryDeployment) -> None:
    gateway = await serving_gateway(memory_deployment)
    memory_deployment.features.hold = asyncio.Event()
    sent = [
        pb.StreamPredictRequest(id="slow", request=request(model=MODEL)),
        pb.StreamPredictRequest(id="wrong", request=pb.PredictRequest(model="late")),
    ]
    call = gateway.stub.StreamPredict(iter(sent), timeout=20)
    assert (await call.read()).id == "wrong"
    memory_deployment.features.hold.set()
    assert (await call.read()).id == "slow"
    assert await call.read() is grpc.aio.EOF


async def test_garbage_ends_a_stream_after_the_answers_before_it(memory_deployment: MemoryDeployment) -> None:
    gateway = await serving_gateway(memory_deployment)
    good = pb.StreamPredictRequest(id="good", request=request(model=MODEL)).SerializeToString()
    method = gateway.channel.stream_stream("/flywheel.inference.v1.InferenceService/StreamPredict")
    call = method(iter([good, b"\xff\xff\xff"]), timeout=20)
    assert pb.StreamPredictResponse.FromString(await call.read()).id == "good"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    error = from_rpc_error(caught.value)
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "MALFORMED_REQUEST")


async def test_a_closed_stream_leaves_no_prediction_in_flight(memory_deployment: MemoryDeployment) -> None:
    gateway = await serving_gateway(memory_deployment)
    memory_deployment.features.hold = asyncio.Event()
    call = gateway.stub.StreamPredict(
        iter([pb.StreamPredictRequest(id="1", request=request(model=MODEL))]), timeout=20
    )
    await eventually(lambda: gateway.server.admission.streams == 1)
    await asyncio.sleep(0.05)
    call.cancel()
    await eventually(lambda: gateway.server.admission.streams == 0)
    memory_deployment.features.hold.set()
    assert not (await gateway.predict()).degraded


async def test_the_sdk_predicts_in_batches_and_streams(memory_deployment: MemoryDeployment) -> None:
    gateway = await serving_gateway(memory_deployment)
    miles = [float(i) for i in range(20)]
    expected = [expected_score(W, 0.0, (2.0, m, 0.0)) for m in miles]
    await eventually(lambda: gateway.server.health.status() == SERVING)
    async with fw.Client("test", inference=f"127.0.0.1:{gateway.server.port}") as client:
        good = [
            client.prediction_request("late", {"carrier": "UA"}, {"miles": m, "origin": "JFK"}) for m in miles
        ]
        bad = client.prediction_request("late", {})
        *results, refused = await client.predict_batch([*good, bad])
        assert [r.response.score for r in results] == pytest.approx(expected, abs=1e-6)
        assert refused.error.reason == "MISSING_JOIN_KEY"

        async def numbered() -> AsyncIterator[tuple[str, pb.PredictRequest]]:
            for number, one in enumerate(good):
                yield str(number), one

        streamed = {id_: result.response.score async for id_, result in client.predict_stream(numbered())}
        fields = {"miles": 3.0, "origin": "JFK"}
        answer = await client.predict("late", {"carrier": "UA"}, fields, subject="ann", variant="champion")
        assert answer.score == pytest.approx(expected[3], abs=1e-6)
        with pytest.raises(fw.FlywheelError) as unknown:
            await client.predict("late", {"carrier": "UA"}, fields, variant="none")
        assert unknown.value.reason == "UNKNOWN_VARIANT"
    assert [streamed[str(i)] for i in range(20)] == pytest.approx(expected, abs=1e-6)
