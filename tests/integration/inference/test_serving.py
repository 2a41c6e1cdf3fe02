"""What is served follows what is wanted: whole generations, verified releases, and an answer in every weather."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_protos.events.v1 import prediction_pb2
from tests.support.eventually import eventually

MODEL = "projects/test/models/late"
W = (0.5, -0.25, 1.0)
DEFAULT = prediction_pb2.PREDICTION_SOURCE_DEFAULT
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def score(weights: tuple[float, ...], bias: float, *inputs: float) -> float:
    return float(1 / (1 + np.exp(-(np.array(inputs) @ np.array(weights) + bias))))


async def failing(gateway: Any, release: str, reason: str) -> Any:
    async def reported() -> Any:
        status = await gateway.status()
        return status if status is not None and status.failures.get(release, "").startswith(reason) else None

    return await eventually(reported, within=30)


async def degraded(gateway: Any, reason: str | tuple[str, ...], within: float = 20.0) -> Any:
    async def seen() -> Any:
        answer = await gateway.predict()
        return answer if answer.degraded and answer.degraded_reason in reason else None

    return await eventually(seen, within=within)


async def recovered(gateway: Any, within: float = 40.0) -> Any:
    async def whole() -> Any:
        answer = await gateway.predict()
        return answer if not answer.degraded else None

    return await eventually(whole, within=within)


async def test_a_release_whose_golden_rows_differ_takes_no_traffic(world: Any) -> None:
    gateway = await world.gateway()
    good = world.registry.want(champion=world.registry.release(11, W))
    await gateway.serves(good)
    world.registry.want(champion=world.registry.release(12, W, golden_shift=0.01))
    status = await failing(gateway, f"{MODEL}/releases/12", "GOLDEN_ROWS_MISMATCH")
    assert (status.champion_release, status.generation) == (f"{MODEL}/releases/11", good)
    assert (await gateway.predict()).release == f"{MODEL}/releases/11"
    report = await eventually(
        lambda: [m for r in world.registry.reports[-1:] for m in r.models if m.failures]
    )
    assert f"{MODEL}/releases/12" in report[0].failures
    assert (report[0].generation, list(report[0].ready_releases)) == (good, [])


async def test_an_artifact_whose_digest_differs_is_refused(world: Any) -> None:
    gateway = await world.gateway()
    await gateway.serves(world.registry.want(champion=world.registry.release(21, W)))
    world.registry.want(champion=world.registry.release(22, (1.0, 1.0, 1.0), corrupt=True))
    await failing(gateway, f"{MODEL}/releases/22", "DIGEST_MISMATCH")
    assert (await gateway.predict()).score == pytest.approx(score(W, 0.0, 2.0, 1.0, 0.0), abs=1e-5)


async def test_a_signature_that_the_model_file_does_not_have_is_refused(world: Any) -> None:
    gateway = await world.gateway()
    release = world.registry.release(23, (1.0, 1.0, 1.0))
    del release.model_version.signature.inputs[2]
    rows = np.ones((1, 2), np.float32)
    release.model_version.golden_rows.inputs = rows.tobytes()
    release.model_version.golden_rows.row_count = 1
    release.model_version.golden_rows.scores = np.ones(1, np.float32).tobytes()
    world.registry.want(champion=release)
    await failing(gateway, f"{MODEL}/releases/23", "MODEL_REFUSED")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.predict()
    error = from_rpc_error(caught.value)
    assert (error.code.name, error.reason) == ("UNAVAILABLE", "RELEASE_NOT_READY")


async def test_generations_change_under_load_without_a_failure_or_a_mixed_answer(world: Any) -> None:
    gateway = await world.gateway()
    weights = {31: (0.5, -0.25, 1.0), 32: (-0.5, 0.75, 0.1)}
    releases = {n: world.registry.release(n, w) for n, w in weights.items()}
    await gateway.serves(world.registry.want(champion=releases[31], warm=[releases[32]]))
    await eventually(
        lambda: any(len(m.ready_releases) == 2 for r in world.registry.reports[-1:] for m in r.models),
        within=30,
    )
    stop = asyncio.Event()
    answers: list[Any] = []

    async def client() -> None:
        while not stop.is_set():
            answers.append(await gateway.predict("UA", 2.0, "LGA"))

    clients = [asyncio.create_task(client()) for _ in range(8)]
    for i in range(20):
        old, new = (31, 32) if i % 2 == 0 else (32, 31)
        generation = world.registry.want(champion=releases[new], warm=[releases[old]])
        await gateway.serves(generation, within=5)
    stop.set()
    await asyncio.gather(*clients)
    assert len(answers) > 40
    for answer in answers:
        number = int(answer.release.rsplit("/", 1)[1])
        assert answer.model_version == f"{MODEL}/versions/{number}"
        assert not answer.degraded
        assert answer.score == pytest.approx(score(weights[number], 0.0, 2.0, 2.0, 1.0), abs=1e-5)
    assert {a.release for a in answers} == {f"{MODEL}/releases/31", f"{MODEL}/releases/32"}


async def test_the_registry_hears_of_an_applied_generation_at_once(world: Any) -> None:
    gateway = await world.gateway(heartbeat_seconds=60.0)
    releases = [world.registry.release(n, W) for n in (31, 32)]
    await gateway.serves(world.registry.want(champion=releases[0], warm=[releases[1]]))
    await gateway.serves(world.registry.want(champion=releases[1], warm=[releases[0]]))
    await eventually(
        lambda: [m.generation for r in world.registry.reports[-1:] for m in r.models] == [2], within=2
    )


async def test_models_that_nobody_wants_any_more_are_unloaded(world: Any) -> None:
    gateway = await world.gateway()
    await gateway.serves(world.registry.want(champion=world.registry.release(41, W)))
    await gateway.serves(world.registry.want(champion=world.registry.release(42, W, 1.0)))
    from flywheel_inference.store.triton.model_server import Triton

    triton = Triton(world.triton.grpc_url)
    try:
        await eventually(lambda: _absent(triton, "test.late.v41"), within=20)
        assert await triton.is_loaded("test.late.v42", 5.0)
    finally:
        await triton.close()


async def _absent(triton: Any, name: str) -> bool:
    return not await triton.is_loaded(name, 5.0)


async def test_boots_from_disk_while_the_registry_is_away(world: Any) -> None:
    first = await world.gateway()
    generation = world.registry.want(champion=world.registry.release(51, W))
    await first.serves(generation)
    await first.close()
    await world.registry_peer.stop()
    world.registry.artifacts.clear()
    world.triton.restart()
    second = await world.gateway()
    await second.serves(generation)
    assert (await second.predict()).score == pytest.approx(score(W, 0.0, 2.0, 1.0, 0.0), abs=1e-5)
    await world.registry_peer.start()
    await second.serves(world.registry.want(champion=world.registry.release(52, W, 1.0)))


async def test_a_killed_triton_degrades_answers_until_it_is_back(world: Any) -> None:
    gateway = await world.gateway()
    await gateway.serves(world.registry.want(champion=world.registry.release(61, W, default_score=0.25)))
    assert not (await gateway.predict()).degraded
    await eventually(lambda: gateway.server.health.status("") == SERVING)
    world.triton.kill()
    answer = await degraded(gateway, ("MODEL_UNAVAILABLE", "BUDGET_EXCEEDED"))
    assert (answer.score, answer.source, answer.decision) == (0.25, DEFAULT, False)
    assert answer.release == f"{MODEL}/releases/61"
    assert gateway.server.health.status("") == SERVING, "an outage of a peer does not take the gateway away"
    world.triton.restart()
    assert (await recovered(gateway)).score == pytest.approx(score(W, 0.0, 2.0, 1.0, 0.0), abs=1e-5)


async def test_without_a_fallback_a_killed_triton_is_unavailable(world: Any) -> None:
    gateway = await world.gateway()
    await gateway.serves(world.registry.want(champion=world.registry.release(62, W, default_score=None)))
    world.triton.kill()

    async def refused() -> Any:
        try:
            await gateway.predict()
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)
        return None

    error = await eventually(refused)
    assert (error.code.name, error.reason) == ("UNAVAILABLE", "NO_FALLBACK")
    world.triton.restart()
    await eventually(lambda: _whole(gateway), within=40)


async def _whole(gateway: Any) -> bool:
    try:
        return not (await gateway.predict()).degraded
    except grpc.aio.AioRpcError:
        return False


async def test_a_feature_service_that_is_down_degrades_answers_until_it_is_back(world: Any) -> None:
    gateway = await world.gateway()
    await gateway.serves(world.registry.want(champion=world.registry.release(71, W)))
    world.features.outage = grpc.StatusCode.UNAVAILABLE
    answer = await degraded(gateway, "FEATURES_UNAVAILABLE")
    assert (answer.score, answer.source) == (0.25, DEFAULT)
    world.features.outage = None
    await recovered(gateway, within=10)


async def test_a_feature_service_that_hangs_costs_each_caller_no_more_than_its_own_deadline(
    world: Any,
) -> None:
    gateway = await world.gateway(
        batch_stall_seconds=0.05, answer_reserve_seconds=0.1, batch_cap_seconds=10.0
    )
    await gateway.serves(world.registry.want(champion=world.registry.release(72, W)))
    world.features.hold = asyncio.Event()
    hurried, patient = await asyncio.gather(gateway.predict(timeout=0.5), gateway.predict(timeout=1.5))
    assert (hurried.degraded_reason, patient.degraded_reason) == ("BUDGET_EXCEEDED",) * 2 or {
        hurried.degraded_reason,
        patient.degraded_reason,
    } <= {"BUDGET_EXCEEDED", "FEATURES_UNAVAILABLE"}
    assert hurried.timing.total_ms < 500
    assert patient.timing.total_ms > hurried.timing.total_ms
    world.features.hold.set()
    world.features.hold = None
    await recovered(gateway, within=10)


async def test_a_challenger_that_cannot_answer_changes_nothing_for_the_champions_callers(world: Any) -> None:
    gateway = await world.gateway(breaker_failures=2)
    releases = {
        "champion": world.registry.release(81, W),
        "challenger": world.registry.release(
            82, W, feature_set="projects/test/featureSets/broken/versions/1"
        ),
    }
    await gateway.serves(world.registry.want(**releases, rollout="projects/test/r", shadow_percent=100))
    for _ in range(5):
        answers = await asyncio.gather(*(gateway.predict("UA", float(i)) for i in range(20)))
        expected = [score(W, 0.0, 2.0, float(i), 0.0) for i in range(20)]
        assert [a.score for a in answers] == pytest.approx(expected, abs=1e-5)
    assert world.features.broken_lookups > 0
    await gateway.serves(world.registry.want(**releases, rollout="projects/test/r", challenger_percent=50))
    answers = await asyncio.gather(*(gateway.predict(subject=f"s{i}") for i in range(40)))
    assert {(a.release[-2:], a.degraded) for a in answers} == {("81", False), ("82", True)}


async def test_ready_means_that_what_was_wanted_at_boot_is_loaded(world: Any) -> None:
    world.registry.want(champion=world.registry.release(91, W))
    world.triton.kill()
    gateway = await world.gateway()
    await asyncio.sleep(1.5)
    assert gateway.server.health.status("") == NOT_SERVING
    world.triton.restart()
    await eventually(lambda: gateway.server.health.status("") == SERVING, within=40)


async def test_a_gateway_with_nothing_to_serve_and_no_registry_is_ready(world: Any) -> None:
    await world.registry_peer.stop()
    gateway = await world.gateway()
    await eventually(lambda: gateway.server.health.status("") == SERVING, within=10)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.predict()
    assert from_rpc_error(caught.value).reason == "UNKNOWN_MODEL"


async def test_a_cached_batch_prediction_answers_before_the_default(world: Any, redis_url: str) -> None:
    from redis.asyncio import Redis

    from flywheel_inference.store.redis.cached_predictions import encode, key_of

    redis = Redis.from_url(redis_url)
    await redis.set(key_of(MODEL, "UA"), encode(0.875, 1_000_000_000))
    await redis.aclose()
    gateway = await world.gateway(redis_url=redis_url, answer_reserve_seconds=0.2)
    release = world.registry.release(73, W)
    release.release.fallback.cached_max_age.FromSeconds(60)
    await gateway.serves(world.registry.want(champion=release))
    world.features.outage = grpc.StatusCode.UNAVAILABLE
    young = await gateway.predict("UA", as_of={"seconds": 1_060})
    assert (young.score, young.source, young.degraded) == (
        0.875,
        prediction_pb2.PREDICTION_SOURCE_CACHED,
        True,
    )
    old = await gateway.predict("UA", as_of={"seconds": 1_061})
    assert (old.score, old.source) == (0.25, DEFAULT)
    other = await gateway.predict("DL", as_of={"seconds": 1_060})
    assert (other.score, other.source) == (0.25, DEFAULT)
