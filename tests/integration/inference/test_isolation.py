"""A caller, a request or a challenger that fails does not change the answers of others."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.kafka import topics
from flywheel_inference.api.convert_requests import MAX_PREDICT_BYTES
from flywheel_inference.routing.route import CHALLENGER, CHAMPION, SHADOW
from flywheel_protos.events.v1 import prediction_pb2 as events
from flywheel_protos.inference.v1 import inference_pb2 as pb
from flywheel_protos.registry.v1 import model_pb2
from tests.support.builders.inference import MODEL, expected_score
from tests.support.eventually import eventually
from tests.support.hostile_load import LARGEST_ACCEPTED
from tests.support.prediction_load import predict_request
from tests.support.servers.inference import MemoryDeployment

W = (0.5, -0.25, 1.0)
MODEL_ANSWER, ERROR_ANSWER = events.PREDICTION_SOURCE_MODEL, events.PREDICTION_SOURCE_ERROR


async def test_short_deadlines_of_a_caller_open_no_breaker(memory_deployment: MemoryDeployment) -> None:
    gateway = await memory_deployment.gateway_serving(
        memory_deployment.registry.release(1, W), breaker_failures=2, breaker_open_seconds=60.0
    )
    memory_deployment.features.seconds = 0.03
    for _ in range(8):
        # Too late or a default, but no answer of the model.
        (answer,) = await asyncio.gather(gateway.predict(timeout=0.02), return_exceptions=True)
        assert isinstance(answer, grpc.aio.AioRpcError) or answer.degraded_reason == "BUDGET_EXCEEDED"
    assert not (await gateway.predict()).degraded


async def test_a_dependency_that_hangs_opens_the_breaker(memory_deployment: MemoryDeployment) -> None:
    gateway = await memory_deployment.gateway_serving(
        memory_deployment.registry.release(1, W, default_score=0.1),
        breaker_failures=2,
        breaker_open_seconds=60.0,
        batch_cap_seconds=0.1,
    )
    assert not (await gateway.predict()).degraded
    memory_deployment.features.hold = asyncio.Event()
    for _ in range(2):
        assert (await gateway.predict()).degraded
    memory_deployment.features.hold.set()
    # The feature service answers again, but the open breaker asks it only after a pause.
    answer = await gateway.predict()
    assert answer.degraded and answer.degraded_reason == "FEATURES_UNAVAILABLE"


async def test_a_refused_request_fails_alone(memory_deployment: MemoryDeployment) -> None:
    gateway = await memory_deployment.gateway_serving(memory_deployment.registry.release(1, W))
    memory_deployment.features.refused = {"bad"}
    carriers = ["bad" if i % 17 == 5 else "UA" for i in range(85)]
    answers = await asyncio.gather(
        *(gateway.predict(carrier, float(i)) for i, carrier in enumerate(carriers)), return_exceptions=True
    )
    for i, (carrier, answer) in enumerate(zip(carriers, answers, strict=True)):
        if carrier == "bad":
            assert isinstance(answer, grpc.aio.AioRpcError)
            assert answer.code() is grpc.StatusCode.INVALID_ARGUMENT
        else:
            assert not isinstance(answer, BaseException)
            assert answer.score == pytest.approx(expected_score(W, 0.0, (2.0, float(i), 0.0)), abs=1e-5)


async def test_a_request_that_is_too_large_is_refused(memory_deployment: MemoryDeployment) -> None:
    gateway = await memory_deployment.gateway_serving(memory_deployment.registry.release(1, W))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.predict(origin="x" * MAX_PREDICT_BYTES)
    assert from_rpc_error(caught.value).reason == "MESSAGE_TOO_LARGE"


async def test_a_batch_larger_than_a_message_may_be_is_refused_by_the_transport(
    memory_deployment: MemoryDeployment,
) -> None:
    gateway = await memory_deployment.gateway_serving(memory_deployment.registry.release(1, W))
    requests = [predict_request(1, "x" * LARGEST_ACCEPTED), predict_request(2, "x" * 2000)]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub.BatchPredict(pb.BatchPredictRequest(model=MODEL, requests=requests), timeout=5)
    error = from_rpc_error(caught.value)
    assert (error.reason, error.metadata) == ("MESSAGE_TOO_LARGE", {"limit_bytes": "8388608"})
    assert not (await gateway.predict()).degraded


async def test_a_canary_that_lacks_a_field_leaves_the_answer_to_the_champion(
    memory_deployment: MemoryDeployment,
) -> None:
    registry = memory_deployment.registry
    champion = registry.release(1, W)
    challenger = registry.release(
        2,
        (0.0, 0.0, 0.0),
        feature_set="projects/t/featureSets/windy/versions/1",
        segment_keys=["wind"],
        segment_thresholds={"wind=2.0": 0.25},
    )
    gateway = await memory_deployment.gateway()
    await gateway.serves(
        registry.want(champion=champion, challenger=challenger, rollout="r", challenger_percent=100.0)
    )
    answer = await gateway.predict("UA", 3.0, "EWR", prediction_id="lacks-wind")
    assert answer.release == champion.release.name and answer.role == CHAMPION
    rows = (await memory_deployment.logged(topics.PREDICTION_LOGGED, {"lacks-wind"}, each=2))["lacks-wind"]
    logged = {batch.role: (batch, row) for _, batch, row in rows}
    assert logged[CHAMPION][0].sources[logged[CHAMPION][1]] == MODEL_ANSWER
    batch, row = logged[CHALLENGER]
    assert batch.release == challenger.release.name and batch.rollout == "r"
    assert batch.sources[row] == ERROR_ANSWER and batch.error_reasons[row] == "MISSING_REQUEST_FIELD"
    with pytest.raises(grpc.aio.AioRpcError):
        # The champion refuses this request, too: not a failure of the challenger.
        await gateway.predict("UA", prediction_id="x" * 1000)
    await asyncio.sleep(0.1)
    assert memory_deployment.log_rows() == 2


async def test_a_shadow_that_lacks_a_field_fails_only_in_the_log(memory_deployment: MemoryDeployment) -> None:
    registry = memory_deployment.registry
    champion = registry.release(1, W)
    challenger = registry.release(2, W, feature_set="projects/t/featureSets/windy/versions/1")
    gateway = await memory_deployment.gateway()
    await gateway.serves(
        registry.want(champion=champion, challenger=challenger, rollout="r", shadow_percent=100.0)
    )
    answer = await gateway.predict("UA", 3.0, "EWR", prediction_id="no-wind")
    assert answer.role == CHAMPION and not answer.degraded
    rows = (await memory_deployment.logged(topics.PREDICTION_LOGGED, {"no-wind"}, each=2))["no-wind"]
    batch, row = next((batch, row) for _, batch, row in rows if batch.role == SHADOW)
    assert batch.sources[row] == ERROR_ANSWER and batch.error_reasons[row] == "MISSING_REQUEST_FIELD"
    await eventually(lambda: memory_deployment.log_rows() == 2)


async def test_changed_content_of_a_release_is_served(memory_deployment: MemoryDeployment) -> None:
    registry = memory_deployment.registry
    release = registry.release(1, W)
    gateway = await memory_deployment.gateway_serving(release)
    assert (await gateway.predict("UA", 3.0, "EWR")).decision
    release.release.threshold = 0.999
    registry.desired.models[0].champion.CopyFrom(registry.reference(release))
    registry.changed.set()

    async def refused() -> bool:
        return not (await gateway.predict("UA", 3.0, "EWR")).decision

    await eventually(refused, within=10)


async def test_a_release_that_cannot_be_decoded_leaves_the_old_one(
    memory_deployment: MemoryDeployment,
) -> None:
    registry = memory_deployment.registry
    gateway = await memory_deployment.gateway_serving(registry.release(1, W))
    newer = registry.release(2, W, calibration=model_pb2.Calibration(isotonic={"x": [1.0, 0.0], "y": [0, 1]}))
    registry.want(champion=newer)

    async def reported() -> str:
        return str((await gateway.status()).failures.get(newer.release.name, ""))

    assert "must not decrease" in await eventually(reported, within=10)
    answer = await gateway.predict()
    assert answer.release.endswith("/releases/1") and not answer.degraded
    assert (await gateway.status()).generation == 1


async def test_a_gateway_keeps_a_model_loaded_that_another_one_still_uses(
    memory_deployment: MemoryDeployment,
) -> None:
    registry = memory_deployment.registry
    old, new = registry.release(1, W), registry.release(2, W)
    gateway = await memory_deployment.gateway_serving(old, unload_seconds=1.0)
    await gateway.serves(registry.want(champion=new))
    name = "test.late.v1"
    await asyncio.sleep(0.3)
    assert await memory_deployment.models.is_loaded(name, 1.0), "the other gateway may still use it"
    await gateway.serves(registry.want(champion=old))
    await asyncio.sleep(1.2)
    assert await memory_deployment.models.is_loaded(name, 1.0), "it is used again"
    await gateway.serves(registry.want(champion=new))

    async def unloaded() -> bool:
        return not await memory_deployment.models.is_loaded(name, 1.0)

    await eventually(unloaded, within=10)


async def test_the_champion_answers_for_a_challenger_without_an_answer(
    memory_deployment: MemoryDeployment,
) -> None:
    registry = memory_deployment.registry
    broken = "projects/test/featureSets/broken/versions/1"
    gateway = await memory_deployment.gateway(breaker_failures=2)
    await gateway.serves(
        registry.want(
            champion=registry.release(1, W, default_score=None),
            challenger=registry.release(2, W, feature_set=broken, default_score=None),
            rollout="projects/test/r",
            challenger_percent=100,
        )
    )
    for number in range(10):
        answer = await gateway.predict(prediction_id=f"c{number}")
        assert (f"{MODEL}/releases/1", False) == (answer.release, answer.degraded)
    logged = await memory_deployment.logged(topics.PREDICTION_LOGGED, {f"c{n}" for n in range(10)}, each=2)
    for rows in logged.values():
        roles = {batch.role: batch.sources[row] for _, batch, row in rows}
        assert {CHAMPION: MODEL_ANSWER, CHALLENGER: ERROR_ANSWER} == roles
