"""The laws of stages, rollouts, routing and serving history (test_store_serving.py) as callers see them: through real RPCs to the whole
registry, over the store in memory and over PostgreSQL. What no RPC reaches stands in test_laws_at_the_edge.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from flywheel_common.grpc.channel import from_rpc_error
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_registry.testing import Story, refused

PRODUCTION = model_pb2.STAGE_PRODUCTION
OVERRIDE: dict[str, Any] = {"to_stage": PRODUCTION, "override": True, "reason": "by hand"}


def numbers(items: Sequence[Any]) -> list[int]:
    return [int(item.name.rsplit("/", 1)[1]) for item in items]


async def test_racing_promotions_leave_one_champion_and_the_others_behind_it(story: Story) -> None:
    await story.create()
    versions = [(await story.staged(b"same"))[0].name for _ in range(6)]

    async def race(name: str) -> str:
        try:
            return "won" if (await story.promote(name, to_stage=PRODUCTION)).passed else "failed"
        except grpc.RpcError as error:
            return from_rpc_error(error).reason

    assert ["ILLEGAL_TRANSITION"] * 5 + ["won"] == sorted(await asyncio.gather(*(race(n) for n in versions)))
    losers = [name for name in versions if await story.stage(name) != "PRODUCTION"]
    await asyncio.gather(*(story.promote(name, **OVERRIDE) for name in losers))
    stages = [await story.stage(name) for name in versions]
    assert ["ARCHIVED"] * 5 + ["PRODUCTION"] == sorted(stages)
    champion = versions[stages.index("PRODUCTION")]
    model = (await story.stub.GetModel(pb.GetModelRequest(name=story.model))).model
    assert champion == model.production_version


async def test_the_newest_release_of_a_version_is_what_its_promotion_serves(story: Story) -> None:
    await story.create()
    version, _ = await story.staged()
    newest = await story.release(version.name, threshold=0.75)
    other = await story.version(b"other")
    await story.release(other.name)
    await story.promote(version.name, to_stage=PRODUCTION)
    model = (await story.stub.GetModel(pb.GetModelRequest(name=story.model))).model
    assert (newest.name, version.name) == (model.production_release, model.production_version)


async def test_a_model_has_one_active_rollout_and_keeps_its_history(edge: Any) -> None:
    story: Story = edge.story
    await story.create(rollout_policy=model_pb2.RolloutPolicy(canary_percents=[10, 100]))
    _, first = await story.champion()
    _, release = await story.staged(b"second")
    results = await asyncio.gather(
        *(story.start(release.name, reason="go") for _ in range(4)), return_exceptions=True
    )
    (rollout,) = [r for r in results if not isinstance(r, BaseException)]
    losers = [from_rpc_error(r).reason for r in results if isinstance(r, grpc.RpcError)]
    assert ["ROLLOUT_ACTIVE"] * 3 == losers
    assert (first.name, release.name, 2) == (
        rollout.champion_release, rollout.challenger_release, numbers([rollout])[0],
    )  # fmt: skip
    assert rollout == await story.rollout(rollout.name)
    skip = pb.SkipRolloutStepRequest(name=rollout.name, reason="known")
    await story.stub.SkipRolloutStep(skip)
    await story.stub.AbortRollout(pb.AbortRolloutRequest(name=rollout.name, reason="enough"))
    ended = await story.rollout(rollout.name)
    assert [("SHADOW", 0, "go"), ("CANARY", 10, "skipped: known"), ("ABORTED", 0, "enough")] == [
        (model_pb2.RolloutState.Name(s.state).removeprefix("ROLLOUT_STATE_"), s.challenger_percent, s.reason)
        for s in ended.history
    ]
    assert ended.HasField("ended_at")
    again = await story.start(release.name)
    listed = await story.stub.ListRollouts(pb.ListRolloutsRequest(parent=story.model))
    assert [again, ended] == list(listed.rollouts)[:2]
    assert [3, 2, 1] == numbers(listed.rollouts)
    assert ["rollout.changed"] * 5 == [t for t in await edge.emitted() if t == "rollout.changed"]


async def test_a_paused_rollout_is_active(story: Story) -> None:
    await story.create()
    await story.champion()
    _, release = await story.staged(b"second")
    rollout = await story.start(release.name)
    await story.stub.PauseRollout(pb.PauseRolloutRequest(name=rollout.name, reason="wait"))
    assert model_pb2.ROLLOUT_STATE_PAUSED == (await story.rollout(rollout.name)).state
    with refused("FAILED_PRECONDITION", "ROLLOUT_ACTIVE"):
        await story.start(release.name)
    resumed = await story.stub.ResumeRollout(pb.ResumeRolloutRequest(name=rollout.name))
    assert model_pb2.ROLLOUT_STATE_SHADOW == resumed.rollout.state


@asynccontextmanager
async def watching(story: Story, parent: str = "") -> AsyncIterator[Any]:
    """`await following()` is the next state that a gateway is told."""
    call = story.stub.WatchServing(pb.WatchServingRequest(gateway_id="g", parent=parent))
    states = aiter(call)
    try:
        yield lambda: asyncio.wait_for(anext(states), 10)
    finally:
        call.cancel()


async def test_gateways_are_told_the_whole_routing_at_once_and_at_every_change(story: Story) -> None:
    await story.create()
    async with watching(story) as following, watching(story, "projects/elsewhere") as elsewhere:
        assert [] == list((await following()).models)
        assert [] == list((await elsewhere()).models)
        first, a = await story.champion()
        told = (await following()).models[0]
        assert (story.model, 1, a, first.name) == (
            told.model, told.generation, told.champion.release, told.champion.model_version.name,
        )  # fmt: skip
        assert not told.HasField("challenger") and not told.warm
        _, b = await story.staged(b"second")
        rollout = await story.start(b.name)
        told = (await following()).models[0]
        assert (2, a.name, b.name, rollout.name, 100, 0) == (
            told.generation, told.champion.release.name, told.challenger.release.name, told.rollout, told.shadow_percent,
            told.challenger_percent,
        )  # fmt: skip
        await story.stub.SkipRolloutStep(pb.SkipRolloutStepRequest(name=rollout.name, reason="known"))
        told = (await following()).models[0]
        assert (3, 0, 5) == (told.generation, told.shadow_percent, told.challenger_percent)
        async with watching(story, "projects/default") as late:
            assert [told] == list((await late()).models)
        await story.stub.AbortRollout(pb.AbortRolloutRequest(name=rollout.name))
        told = (await following()).models[0]
        assert (4, a.name, "") == (told.generation, told.champion.release.name, told.rollout)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(elsewhere(), 0.2)


async def test_a_new_span_ends_the_open_one(story: Story) -> None:
    await story.create()
    versions, releases = [], []
    for content in (b"first", b"second", b"third"):
        version, release = await story.staged(content)
        await story.promote(version.name, **OVERRIDE)
        versions.append(version.name)
        releases.append(release.name)
    await story.stub.RollbackModel(pb.RollbackModelRequest(name=story.model, reason="bad numbers"))
    first = await story.stub.ListServingHistory(pb.ListServingHistoryRequest(parent=story.model, page_size=3))
    rest = await story.stub.ListServingHistory(
        pb.ListServingHistoryRequest(parent=story.model, page_size=3, page_token=first.next_page_token)
    )
    spans = [*rest.spans, *reversed(first.spans)]
    order = [0, 1, 2, 1]
    assert [releases[i] for i in order] == [s.release for s in spans]
    assert [versions[i] for i in order] == [s.model_version for s in spans]
    assert "bad numbers" == spans[-1].reason
    begins = [getattr(s, "from") for s in spans]
    assert begins[1:] == [s.until for s in spans[:-1]]
    assert not spans[-1].HasField("until")
