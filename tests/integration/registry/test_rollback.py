"""Rollback with gateways that watch and report through the real API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc

from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_registry.config import RegistrySettings
from flywheel_registry.testing import Story, refused, running
from tests.support.eventually import eventually


class FakeGateway:
    """Applies what it is told after `lag` seconds and reports every 50 ms until `dead`."""

    def __init__(self, stub: Any, name: str, lag: float = 0.0) -> None:
        self.stub, self.name, self.lag = stub, name, lag
        self.states: list[registry_pb2.WatchServingResponse] = []
        self.applied: dict[str, int] = {}

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._report())

    async def _watch(self) -> None:
        async for state in self.stub.WatchServing(registry_pb2.WatchServingRequest(gateway_id=self.name)):
            self.states.append(state)
            await asyncio.sleep(self.lag)
            self.applied = {model.model: model.generation for model in state.models}

    async def _report(self) -> None:
        while True:
            seen = [model_pb2.ObservedModel(model=m, generation=g) for m, g in self.applied.items()]
            await self.stub.ReportServing(
                registry_pb2.ReportServingRequest(gateway_id=self.name, models=seen)
            )
            await asyncio.sleep(0.05)


@asynccontextmanager
async def gateway(stub: Any, name: str, lag: float = 0.0) -> AsyncIterator[FakeGateway]:
    fake = FakeGateway(stub, name, lag)
    task = asyncio.create_task(fake.run())
    try:
        yield fake
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, BaseExceptionGroup, grpc.RpcError):
            await task


async def replaced(story: Story) -> tuple[list[model_pb2.ModelVersion], list[model_pb2.Release]]:
    """Two versions have served, the second does."""
    await story.create()
    first, a = await story.champion(b"first")
    second, b = await story.staged(b"second")
    await story.promote(second.name, to_stage=model_pb2.STAGE_PRODUCTION, override=True, reason="test")
    return [first, second], [a, b]


async def roll_back(story: Story, **fields: Any) -> registry_pb2.RollbackModelResponse:
    request = registry_pb2.RollbackModelRequest(name=story.model, reason="bad numbers", **fields)
    return await story.stub.RollbackModel(request, timeout=5)


async def test_a_rollback_answers_when_every_live_gateway_applies_it(story: Story) -> None:
    versions, releases = await replaced(story)
    async with gateway(story.stub, "fast") as fast, gateway(story.stub, "slow", lag=0.3) as slow:
        await eventually(lambda: fast.applied and slow.applied)
        before = fast.applied[story.model]
        answer = await roll_back(story)
        assert answer.complete
        assert answer.elapsed.ToTimedelta().total_seconds() >= 0.3
        assert fast.applied[story.model] == slow.applied[story.model] == before + 1
        assert {g.id for g in answer.gateways if g.live} == {"fast", "slow"}
        serving = fast.states[-1].models[0]
        assert serving.champion.release.name == releases[0].name
        assert [w.release.name for w in serving.warm] == [releases[1].name]
    assert answer.model.production_release == releases[0].name
    assert [await story.stage(v.name) for v in versions] == ["PRODUCTION", "ARCHIVED"]
    history = (
        await story.stub.ListServingHistory(registry_pb2.ListServingHistoryRequest(parent=story.model))
    ).spans
    assert [span.release for span in history] == [releases[0].name, releases[1].name, releases[0].name]
    assert [(e.action, e.subject) for e in await story.audit() if e.action == "ROLLBACK"] == [
        ("ROLLBACK", versions[0].name)
    ]


async def test_a_gateway_that_never_applies_makes_it_incomplete_but_the_rollback_stands(story: Story) -> None:
    _, releases = await replaced(story)
    async with gateway(story.stub, "stuck", lag=60.0) as stuck:
        await eventually(lambda: stuck.states)
        request = registry_pb2.RollbackModelRequest(name=story.model)
        answer = await story.stub.RollbackModel(request, timeout=1.0)
    assert not answer.complete
    assert answer.model.production_release == releases[0].name


async def test_a_dead_gateway_stops_nobody(story: Story) -> None:
    await replaced(story)
    async with gateway(story.stub, "gone", lag=60.0) as gone:
        await eventually(lambda: gone.states)
    answer = await roll_back(story)
    assert answer.complete
    assert answer.elapsed.ToTimedelta().total_seconds() < 3


async def test_a_second_rollback_goes_further_back_and_never_forward_again(story: Story) -> None:
    _, releases = await replaced(story)
    third, c = await story.staged(b"third")
    await story.promote(third.name, to_stage=model_pb2.STAGE_PRODUCTION, override=True, reason="test")
    assert (await roll_back(story)).model.production_release == releases[1].name
    assert (await roll_back(story)).model.production_release == releases[0].name
    with refused("FAILED_PRECONDITION", "NOTHING_TO_ROLL_BACK_TO"):
        await roll_back(story)
    assert (await roll_back(story, to_release=c.name)).model.production_release == c.name


async def test_a_repeated_request_id_rolls_back_once(story: Story) -> None:
    _, releases = await replaced(story)
    third, _ = await story.staged(b"third")
    await story.promote(third.name, to_stage=model_pb2.STAGE_PRODUCTION, override=True, reason="test")
    answers = await asyncio.gather(*(roll_back(story, request_id="incident-1") for _ in range(10)))
    assert {a.model.production_release for a in answers} == {releases[1].name}
    history = (
        await story.stub.ListServingHistory(registry_pb2.ListServingHistoryRequest(parent=story.model))
    ).spans
    assert len(history) == 4


async def test_a_rollback_asked_for_again_after_another_promotion_takes_nothing_back(story: Story) -> None:
    _, releases = await replaced(story)
    first = await roll_back(story, request_id="incident-1")
    third, c = await story.staged(b"third")
    await story.promote(third.name, to_stage=model_pb2.STAGE_PRODUCTION, override=True, reason="mended")
    again = await roll_back(story, request_id="incident-1")
    assert again.model == first.model
    assert again.model.production_release == releases[0].name
    serving = (await story.stub.GetModel(registry_pb2.GetModelRequest(name=story.model))).model
    assert serving.production_release == c.name


async def test_a_rollback_ends_an_active_rollout(story: Story) -> None:
    _, releases = await replaced(story)
    _, release = await story.staged(b"third")
    rollout = await story.start(release.name)
    async with gateway(story.stub, "g") as watching:
        await eventually(lambda: watching.states and watching.states[-1].models[0].HasField("challenger"))
        assert watching.states[-1].models[0].shadow_percent == 100
        assert (await roll_back(story)).complete
        serving = watching.states[-1].models[0]
        assert serving.champion.release.name == releases[0].name
        assert not serving.HasField("challenger")
    assert (await story.rollout(rollout.name)).state == model_pb2.ROLLOUT_STATE_ABORTED


async def test_watchers_of_every_replica_see_a_change_made_at_another(
    settings: Callable[..., RegistrySettings],
) -> None:
    async with running(settings()) as one, running(settings()) as two:
        story = Story(one)
        _, releases = await replaced(story)
        async with gateway(two, "elsewhere", lag=0.1) as elsewhere:
            await eventually(lambda: elsewhere.applied)
            answer = await roll_back(story)
            assert answer.complete
            assert [g.id for g in answer.gateways] == ["elsewhere"]
            assert elsewhere.states[-1].models[0].champion.release.name == releases[0].name
        listed = await two.ListGateways(registry_pb2.ListGatewaysRequest())
        assert [g.id for g in listed.gateways] == ["elsewhere"]
