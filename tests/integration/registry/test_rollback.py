"""Rollback with gateways that watch and report."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_registry.config import RegistrySettings
from tests.support.builders.registry import ModelClient
from tests.support.eventually import eventually
from tests.support.peers.registry import running_gateway
from tests.support.servers.registry import refused, running_registry


async def two_served_versions(
    client: ModelClient,
) -> tuple[list[model_pb2.ModelVersion], list[model_pb2.Release]]:
    """Create two versions; both have served, the second serves."""
    await client.create()
    first, a = await client.champion("first")
    second, b = await client.staged("second")
    await client.promote(second.name, to_stage=model_pb2.STAGE_PRODUCTION, override=True, reason="test")
    return [first, second], [a, b]


async def roll_back(client: ModelClient, **fields: Any) -> registry_pb2.RollbackModelResponse:
    request = registry_pb2.RollbackModelRequest(name=client.model, reason="bad numbers", **fields)
    return await client.stub.RollbackModel(request, timeout=5)


async def test_rollback_answers_when_every_live_gateway_applies_it(client: ModelClient) -> None:
    versions, releases = await two_served_versions(client)
    async with (
        running_gateway(client.stub, "fast") as fast,
        running_gateway(client.stub, "slow", lag=0.3) as slow,
    ):
        await eventually(lambda: fast.applied and slow.applied)
        before = fast.applied[client.model]
        answer = await roll_back(client)
        assert answer.complete
        assert answer.elapsed.ToTimedelta().total_seconds() >= 0.3
        assert fast.applied[client.model] == slow.applied[client.model] == before + 1
        assert {g.id for g in answer.gateways if g.live} == {"fast", "slow"}
        serving = fast.states[-1].models[0]
        assert serving.champion.release == releases[0].name
        assert [w.release for w in serving.warm] == [releases[1].name]
    assert answer.model.production_release == releases[0].name
    assert [await client.stage(v.name) for v in versions] == ["PRODUCTION", "ARCHIVED"]
    history = (
        await client.stub.ListServingHistory(registry_pb2.ListServingHistoryRequest(parent=client.model))
    ).spans
    assert [span.release for span in history] == [releases[0].name, releases[1].name, releases[0].name]
    assert [(e.action, e.subject) for e in await client.audit() if e.action == "ROLLBACK"] == [
        ("ROLLBACK", versions[0].name)
    ]


async def test_rollback_is_incomplete_when_a_gateway_does_not_apply_it(
    client: ModelClient,
) -> None:
    _, releases = await two_served_versions(client)
    async with running_gateway(client.stub, "stuck", lag=60.0) as stuck:
        await eventually(lambda: stuck.states)
        request = registry_pb2.RollbackModelRequest(name=client.model)
        answer = await client.stub.RollbackModel(request, timeout=3.0)
    assert not answer.complete
    assert answer.model.production_release == releases[0].name


async def test_rollback_is_incomplete_when_a_gateway_is_cut_off(client: ModelClient) -> None:
    await two_served_versions(client)
    async with running_gateway(client.stub, "cut off") as gone:
        await eventually(lambda: gone.applied)
    answer = await roll_back(client)
    assert not answer.complete
    assert list(answer.unacknowledged_gateways) == ["cut off"]


async def test_rollback_does_not_count_a_gateway_that_left(client: ModelClient) -> None:
    await two_served_versions(client)
    async with running_gateway(client.stub, "stopped") as stopped:
        await eventually(lambda: stopped.applied)
    await client.stub.ReportServing(registry_pb2.ReportServingRequest(gateway_id="stopped", leaving=True))
    answer = await roll_back(client)
    assert answer.complete
    assert not answer.gateways


async def test_a_second_rollback_goes_further_back(client: ModelClient) -> None:
    _, releases = await two_served_versions(client)
    third, c = await client.staged("third")
    await client.promote(third.name, to_stage=model_pb2.STAGE_PRODUCTION, override=True, reason="test")
    assert (await roll_back(client)).model.production_release == releases[1].name
    assert (await roll_back(client)).model.production_release == releases[0].name
    with refused("FAILED_PRECONDITION", "NOTHING_TO_ROLL_BACK_TO"):
        await roll_back(client)
    assert (await roll_back(client, to_release=c.name)).model.production_release == c.name


async def test_concurrent_equal_request_ids_roll_back_once(client: ModelClient) -> None:
    _, releases = await two_served_versions(client)
    third, _ = await client.staged("third")
    await client.promote(third.name, to_stage=model_pb2.STAGE_PRODUCTION, override=True, reason="test")
    answers = await asyncio.gather(*(roll_back(client, request_id="incident-1") for _ in range(10)))
    assert {a.model.production_release for a in answers} == {releases[1].name}
    history = (
        await client.stub.ListServingHistory(registry_pb2.ListServingHistoryRequest(parent=client.model))
    ).spans
    assert len(history) == 4


async def test_a_repeated_rollback_does_not_undo_a_later_promotion(
    client: ModelClient,
) -> None:
    _, releases = await two_served_versions(client)
    first = await roll_back(client, request_id="incident-1")
    third, c = await client.staged("third")
    await client.promote(third.name, to_stage=model_pb2.STAGE_PRODUCTION, override=True, reason="fixed")
    again = await roll_back(client, request_id="incident-1")
    assert again.model == first.model
    assert again.model.production_release == releases[0].name
    serving = (await client.stub.GetModel(registry_pb2.GetModelRequest(name=client.model))).model
    assert serving.production_release == c.name


async def test_rollback_aborts_an_active_rollout(client: ModelClient) -> None:
    _, releases = await two_served_versions(client)
    _, release = await client.staged("third")
    rollout = await client.start(release.name)
    async with running_gateway(client.stub, "g") as watching:
        await eventually(lambda: watching.states and watching.states[-1].models[0].HasField("challenger"))
        assert (await roll_back(client)).complete
        serving = watching.states[-1].models[0]
        assert serving.champion.release == releases[0].name
        assert not serving.HasField("challenger")
    assert (await client.rollout(rollout.name)).state == model_pb2.ROLLOUT_STATE_ABORTED


async def test_watchers_of_one_replica_see_changes_made_at_another(
    settings: Callable[..., RegistrySettings],
) -> None:
    async with running_registry(settings()) as one, running_registry(settings()) as two:
        client = ModelClient(one)
        _, releases = await two_served_versions(client)
        async with running_gateway(two, "elsewhere", lag=0.1) as elsewhere:
            await eventually(lambda: elsewhere.applied)
            answer = await roll_back(client)
            assert answer.complete
            assert [g.id for g in answer.gateways] == ["elsewhere"]
            assert elsewhere.states[-1].models[0].champion.release == releases[0].name
        listed = await two.ListGateways(registry_pb2.ListGatewaysRequest())
        assert [g.id for g in listed.gateways] == ["elsewhere"]
