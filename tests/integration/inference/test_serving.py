"""Serving on real Triton: generations, verified releases, outages, boot from disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from redis.asyncio import Redis

from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.scoring.cached_prediction import CachedPrediction, encode, key_of
from flywheel_common.signature import OutputSpec
from flywheel_inference.store.triton.model_server import TritonModelServer
from flywheel_local.triton import Triton
from flywheel_protos.events.v1 import prediction_pb2
from tests.support.builders.inference import MODEL, expected_score
from tests.support.builders.onnx_models import golden_rows
from tests.support.eventually import eventually
from tests.support.servers.inference import Deployment, Gateway, MemoryDeployment

W = (0.5, -0.25, 1.0)
CACHED, DEFAULT = prediction_pb2.PREDICTION_SOURCE_CACHED, prediction_pb2.PREDICTION_SOURCE_DEFAULT
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def models(triton: Triton) -> AsyncIterator[TritonModelServer]:
    """A client of Triton."""
    client = TritonModelServer(triton.grpc_url)
    yield client
    await client.close()


def score(weights: tuple[float, ...], bias: float, *inputs: float) -> float:
    return expected_score(weights, bias, inputs)


async def failure(gateway: Gateway, release: str, reason: str) -> Any:
    """Waits until the release fails with this reason; returns the status."""

    async def reported() -> Any:
        status = await gateway.status()
        return status if status is not None and status.failures.get(release, "").startswith(reason) else None

    return await eventually(reported, within=30)


async def degraded(gateway: Gateway, *reasons: str) -> Any:
    """Waits for an answer that is degraded for one of these reasons."""

    async def seen() -> Any:
        answer = await gateway.predict()
        return answer if answer.degraded and answer.degraded_reason in reasons else None

    return await eventually(seen, within=20)


async def recovered(gateway: Gateway, within: float = 40.0) -> Any:
    """Waits for an answer of the model."""

    async def seen() -> Any:
        try:
            answer = await gateway.predict()
        except grpc.aio.AioRpcError:
            return None
        return answer if not answer.degraded else None

    return await eventually(seen, within=within)


async def error_of(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_a_release_whose_golden_rows_differ_gets_no_traffic(deployment: Deployment) -> None:
    registry = deployment.registry
    gateway = await deployment.gateway()
    good = registry.want(champion=registry.release(11, W))
    await gateway.serves(good)
    registry.want(champion=registry.release(12, W, golden_shift=0.01))
    status = await failure(gateway, f"{MODEL}/releases/12", "GOLDEN_ROWS_MISMATCH")
    assert (status.champion_release, status.generation) == (f"{MODEL}/releases/11", good)
    assert (await gateway.predict()).release == f"{MODEL}/releases/11"
    report = await eventually(lambda: [m for r in registry.reports[-1:] for m in r.models if m.failures])
    assert f"{MODEL}/releases/12" in report[0].failures
    assert (report[0].generation, list(report[0].ready_releases)) == (good, [])


async def test_an_artifact_with_a_wrong_digest_is_refused(
    deployment: Deployment, models: TritonModelServer
) -> None:
    registry = deployment.registry
    gateway = await deployment.gateway_serving(registry.release(21, W))
    registry.want(champion=registry.release(22, (1.0, 1.0, 1.0), corrupt=True))
    await failure(gateway, f"{MODEL}/releases/22", "DIGEST_MISMATCH")
    answer = await gateway.predict()
    assert answer.release == f"{MODEL}/releases/21"
    assert answer.score == pytest.approx(score(W, 0.0, 2.0, 1.0, 0.0), abs=1e-5)
    assert not await models.is_loaded("test.late.v22", 5.0)


async def test_a_signature_that_differs_from_the_model_file_is_refused(deployment: Deployment) -> None:
    gateway = await deployment.gateway()
    release = deployment.registry.release(23, (1.0, 1.0, 1.0))
    del release.model_version.signature.inputs[2]
    rows = np.ones((1, 2), np.float32)
    release.model_version.golden_rows.CopyFrom(golden_rows(rows, np.ones(1, np.float32)))
    deployment.registry.want(champion=release)
    await failure(gateway, f"{MODEL}/releases/23", "MODEL_REFUSED")
    error = await error_of(gateway.predict())
    assert (error.code.name, error.reason) == ("UNAVAILABLE", "RELEASE_NOT_READY")


async def test_generations_change_under_load_without_failed_or_mixed_answers(deployment: Deployment) -> None:
    registry = deployment.registry
    gateway = await deployment.gateway()
    weights = {31: (0.5, -0.25, 1.0), 32: (-0.5, 0.75, 0.1)}
    releases = {n: registry.release(n, w) for n, w in weights.items()}
    await gateway.serves(registry.want(champion=releases[31], warm=[releases[32]]))
    await eventually(
        lambda: any(len(m.ready_releases) == 2 for r in registry.reports[-1:] for m in r.models), within=30
    )
    stop = asyncio.Event()
    answers: list[Any] = []

    async def client() -> None:
        while not stop.is_set():
            answers.append(await gateway.predict("UA", 2.0, "LGA"))

    clients = [asyncio.create_task(client()) for _ in range(8)]
    for i in range(20):
        old, new = (31, 32) if i % 2 == 0 else (32, 31)
        await gateway.serves(registry.want(champion=releases[new], warm=[releases[old]]))
    stop.set()
    await asyncio.gather(*clients)
    assert len(answers) > 40
    for answer in answers:
        number = int(answer.release.rsplit("/", 1)[1])
        assert answer.model_version == f"{MODEL}/versions/{number}"
        assert not answer.degraded
        assert answer.score == pytest.approx(score(weights[number], 0.0, 2.0, 2.0, 1.0), abs=1e-5)
    assert {a.release for a in answers} == {f"{MODEL}/releases/31", f"{MODEL}/releases/32"}


async def test_an_applied_generation_is_reported_without_a_heartbeat(deployment: Deployment) -> None:
    registry = deployment.registry
    gateway = await deployment.gateway(heartbeat_seconds=60.0)
    releases = [registry.release(n, W) for n in (31, 32)]
    await gateway.serves(registry.want(champion=releases[0], warm=[releases[1]]))
    await gateway.serves(registry.want(champion=releases[1], warm=[releases[0]]))
    await eventually(lambda: [m.generation for r in registry.reports[-1:] for m in r.models] == [2])


async def test_models_of_replaced_releases_are_unloaded(
    deployment: Deployment, models: TritonModelServer
) -> None:
    registry = deployment.registry
    gateway = await deployment.gateway_serving(registry.release(41, W))
    assert await models.is_loaded("test.late.v41", 5.0)
    await gateway.serves(registry.want(champion=registry.release(42, W, 1.0)))
    answer = await gateway.predict()
    assert answer.release == f"{MODEL}/releases/42"
    assert answer.score == pytest.approx(score(W, 1.0, 2.0, 1.0, 0.0), abs=1e-5)

    async def unloaded() -> bool:
        return not await models.is_loaded("test.late.v41", 5.0)

    await eventually(unloaded, within=20)
    assert await models.is_loaded("test.late.v42", 5.0)


async def test_a_model_that_another_gateway_serves_stays_loaded() -> None:
    async with AsyncExitStack() as stack:
        first, second = MemoryDeployment(stack), MemoryDeployment(stack)
        second.models, second.holds = first.models, first.holds
        for deployment in (first, second):
            await deployment.start()
        swapped, old = [
            await deployment.gateway_serving(deployment.registry.release(41, W), gateway_id=name)
            for deployment, name in ((first, "first"), (second, "second"))
        ]
        await swapped.serves(first.registry.want(champion=first.registry.release(42, W, 1.0)))
        await eventually(lambda: first.holds.holders["test.late.v41"] == {"second"})
        for _ in range(20):
            assert not (await old.predict()).degraded
        assert await first.models.is_loaded("test.late.v41", 5.0)
        await old.serves(second.registry.want(champion=second.registry.release(42, W, 1.0)))

        async def unloaded() -> bool:
            return not await first.models.is_loaded("test.late.v41", 5.0)

        await eventually(unloaded)
        assert first.holds.unloading == {}


async def test_models_are_unloaded_once_the_holds_are_known(memory_deployment: MemoryDeployment) -> None:
    registry, models = memory_deployment.registry, memory_deployment.models
    gateway = await memory_deployment.gateway_serving(registry.release(41, W))
    memory_deployment.holds.unknown = True
    await gateway.serves(registry.want(champion=registry.release(42, W, 1.0)))
    await gateway.predict()
    assert await models.is_loaded("test.late.v41", 5.0)
    memory_deployment.holds.unknown = False

    async def unloaded() -> bool:
        return not await models.is_loaded("test.late.v41", 5.0)

    await eventually(unloaded)


async def test_a_gateway_boots_from_disk_without_the_registry(deployment: Deployment, triton: Triton) -> None:
    registry = deployment.registry
    first = await deployment.gateway()
    generation = registry.want(champion=registry.release(51, W))
    await first.serves(generation)
    await first.close()
    await deployment.registry_server.stop()
    registry.artifacts.clear()
    triton.restart()
    second = await deployment.gateway()
    await second.serves(generation)
    assert (await second.predict()).score == pytest.approx(score(W, 0.0, 2.0, 1.0, 0.0), abs=1e-5)
    await deployment.registry_server.start()
    await second.serves(registry.want(champion=registry.release(52, W, 1.0)))


async def test_a_killed_triton_degrades_answers_until_it_restarts(
    deployment: Deployment, triton: Triton
) -> None:
    gateway = await deployment.gateway_serving(deployment.registry.release(61, W, default_score=0.25))
    assert not (await gateway.predict()).degraded
    await eventually(lambda: gateway.server.health.status("") == SERVING)
    triton.kill()
    answer = await degraded(gateway, "MODEL_UNAVAILABLE", "BUDGET_EXCEEDED")
    assert (answer.score, answer.source, answer.decision) == (0.25, DEFAULT, False)
    assert answer.release == f"{MODEL}/releases/61"
    assert gateway.server.health.status("") == SERVING, "an outage of a dependency does not make it unready"
    triton.restart()
    assert (await recovered(gateway)).score == pytest.approx(score(W, 0.0, 2.0, 1.0, 0.0), abs=1e-5)


async def test_without_a_fallback_a_killed_triton_makes_predict_unavailable(
    deployment: Deployment, triton: Triton
) -> None:
    gateway = await deployment.gateway_serving(deployment.registry.release(62, W, default_score=None))
    triton.kill()

    async def refused() -> Any:
        try:
            await gateway.predict()
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)
        return None

    error = await eventually(refused)
    assert (error.code.name, error.reason) == ("UNAVAILABLE", "NO_FALLBACK")
    triton.restart()
    await recovered(gateway)


async def test_a_feature_service_outage_degrades_answers_until_it_ends(deployment: Deployment) -> None:
    gateway = await deployment.gateway_serving(deployment.registry.release(71, W))
    deployment.features.outage = grpc.StatusCode.UNAVAILABLE
    answer = await degraded(gateway, "FEATURES_UNAVAILABLE")
    assert (answer.score, answer.source) == (0.25, DEFAULT)
    deployment.features.outage = None
    await recovered(gateway, within=10)


async def test_a_hung_feature_service_delays_callers_at_most_to_their_deadline(
    deployment: Deployment,
) -> None:
    gateway = await deployment.gateway_serving(
        deployment.registry.release(72, W),
        batch_stall_seconds=0.05,
        answer_reserve_seconds=0.5,
        batch_cap_seconds=10.0,
    )
    deployment.features.hold = asyncio.Event()
    short, long = await asyncio.gather(gateway.predict(timeout=1.0), gateway.predict(timeout=2.5))
    assert {short.degraded_reason, long.degraded_reason} <= {"BUDGET_EXCEEDED", "FEATURES_UNAVAILABLE"}
    assert short.timing.total_ms < 1_000
    assert long.timing.total_ms > short.timing.total_ms
    deployment.features.hold.set()
    deployment.features.hold = None
    await recovered(gateway, within=10)


async def test_a_failing_challenger_does_not_affect_the_champions_callers(deployment: Deployment) -> None:
    registry = deployment.registry
    gateway = await deployment.gateway(breaker_failures=2)
    broken = "projects/test/featureSets/broken/versions/1"
    routing = {
        "champion": registry.release(81, W),
        "challenger": registry.release(82, W, feature_set=broken),
        "rollout": "projects/test/r",
    }
    await gateway.serves(registry.want(**routing, shadow_percent=100))
    for _ in range(5):
        answers = await asyncio.gather(*(gateway.predict("UA", float(i)) for i in range(20)))
        expected = [score(W, 0.0, 2.0, float(i), 0.0) for i in range(20)]
        assert [a.score for a in answers] == pytest.approx(expected, abs=1e-5)
    assert deployment.features.broken_lookups > 0
    await gateway.serves(registry.want(**routing, challenger_percent=50))
    answers = await asyncio.gather(*(gateway.predict(subject=f"s{i}") for i in range(40)))
    assert {(a.release[-2:], a.degraded) for a in answers} == {("81", False), ("82", True)}


async def test_a_gateway_is_not_ready_before_its_champions_are_loaded(
    deployment: Deployment, triton: Triton
) -> None:
    deployment.registry.want(champion=deployment.registry.release(91, W))
    triton.kill()
    gateway = await deployment.gateway()
    await failure(gateway, f"{MODEL}/releases/91", "MODEL_SERVER_DOWN")
    # Several turns of the main loop.
    reports = len(deployment.registry.reports)
    await eventually(lambda: len(deployment.registry.reports) >= reports + 4)
    assert gateway.server.health.status("") == NOT_SERVING
    triton.restart()
    await eventually(lambda: gateway.server.health.status("") == SERVING, within=40)


async def test_a_gateway_that_never_heard_of_the_registry_is_not_ready(deployment: Deployment) -> None:
    await deployment.registry_server.stop()
    gateway = await deployment.gateway()
    error = await error_of(gateway.predict())
    assert (error.code.name, error.reason) == ("UNAVAILABLE", "NO_DESIRED_STATE")
    assert await gateway.status() is None
    assert gateway.server.health.status("") == NOT_SERVING
    await deployment.registry_server.start()
    await eventually(lambda: gateway.server.health.status("") == SERVING, within=10)
    error = await error_of(gateway.predict())
    assert (error.code.name, error.reason) == ("NOT_FOUND", "UNKNOWN_MODEL")


async def test_a_cached_prediction_is_preferred_to_the_default_score(
    deployment: Deployment, redis_url: str
) -> None:
    async with Redis.from_url(redis_url) as redis:
        await redis.set(
            key_of(MODEL, "UA"), encode(CachedPrediction((0.875,), 1_000_000_000, OutputSpec().fingerprint))
        )
    release = deployment.registry.release(73, W)
    release.release.fallback.cached_max_age.FromSeconds(60)
    gateway = await deployment.gateway_serving(release, redis_url=redis_url, answer_reserve_seconds=0.2)
    assert not (await gateway.predict("UA", as_of={"seconds": 1_060})).degraded
    deployment.features.outage = grpc.StatusCode.UNAVAILABLE
    young = await gateway.predict("UA", as_of={"seconds": 1_060})
    assert (young.score, young.source, young.degraded) == (0.875, CACHED, True)
    old = await gateway.predict("UA", as_of={"seconds": 1_061})
    assert (old.score, old.source) == (0.25, DEFAULT)
    other = await gateway.predict("DL", as_of={"seconds": 1_060})
    assert (other.score, other.source) == (0.25, DEFAULT)


async def test_golden_scores_of_one_dimension_fit_a_model_that_returns_a_column(
    deployment: Deployment,
) -> None:
    release = deployment.registry.release(1, W)
    output = release.model_version.golden_rows.output
    assert list(output.shape) == [3, 1]
    del output.shape[1]
    gateway = await deployment.gateway_serving(release)
    answer = await gateway.predict("UA", 3.0, "EWR")
    assert not answer.degraded
    assert answer.score == pytest.approx(expected_score(W, 0.0, (2.0, 3.0, 2.0)), abs=1e-5)
