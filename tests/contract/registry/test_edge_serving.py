"""Edge tests for what serves: desired state, serving history, gateway reports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.registry.v1 import registry_pb2 as pb
from tests.support.builders.registry import ModelClient
from tests.support.eventually import eventually

OVERRIDE: dict[str, Any] = {
    "to_stage": model_pb2.STAGE_PRODUCTION,
    "override": True,
    "reason": "by hand",
}


@asynccontextmanager
async def watching(client: ModelClient, parent: str = "") -> AsyncIterator[Any]:
    """Watch the desired state; `await next_state()` is the next message of the stream."""
    call = client.stub.WatchServing(pb.WatchServingRequest(gateway_id="g", parent=parent))
    states = aiter(call)
    try:
        yield lambda: asyncio.wait_for(anext(states), 10)
    finally:
        call.cancel()


async def test_watchers_receive_the_desired_state_at_every_change(client: ModelClient) -> None:
    await client.create()
    async with watching(client) as next_state, watching(client, "projects/elsewhere") as elsewhere:
        assert [] == list((await next_state()).models)
        assert [] == list((await elsewhere()).models)
        first, a = await client.champion()
        serving = (await next_state()).models[0]
        assert (client.model, 1) == (serving.model, serving.generation)
        assert (a, first.name) == (serving.champion.release, serving.champion.model_version.name)
        assert not serving.HasField("challenger") and not serving.warm
        _, b = await client.staged(b"second")
        rollout = await client.start(b.name)
        serving = (await next_state()).models[0]
        assert (2, a.name, b.name) == (
            serving.generation,
            serving.champion.release.name,
            serving.challenger.release.name,
        )
        assert (rollout.name, 0, 0) == (
            serving.rollout,
            serving.shadow_percent,
            serving.challenger_percent,
        )
        for expected in ((3, 100, 0), (4, 0, 5)):
            await client.stub.SkipRolloutStep(pb.SkipRolloutStepRequest(name=rollout.name, reason="known"))
            serving = (await next_state()).models[0]
            assert expected == (serving.generation, serving.shadow_percent, serving.challenger_percent)
        async with watching(client, "projects/default") as late:
            assert [serving] == list((await late()).models)
        await client.stub.AbortRollout(pb.AbortRolloutRequest(name=rollout.name))
        serving = (await next_state()).models[0]
        assert (5, a.name, "") == (serving.generation, serving.champion.release.name, serving.rollout)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(elsewhere(), 0.2)


async def test_serving_history_has_adjacent_spans_in_pages(client: ModelClient) -> None:
    await client.create()
    versions, releases = [], []
    for content in (b"first", b"second", b"third"):
        version, release = await client.staged(content)
        await client.promote(version.name, **OVERRIDE)
        versions.append(version.name)
        releases.append(release.name)
    await client.stub.RollbackModel(pb.RollbackModelRequest(name=client.model, reason="bad numbers"))

    async def page(token: str = "") -> pb.ListServingHistoryResponse:
        request = pb.ListServingHistoryRequest(parent=client.model, page_size=3, page_token=token)
        return await client.stub.ListServingHistory(request)

    first = await page()
    rest = await page(first.next_page_token)
    spans = [*rest.spans, *reversed(first.spans)]
    order = [0, 1, 2, 1]
    assert [releases[i] for i in order] == [s.release for s in spans]
    assert [versions[i] for i in order] == [s.model_version for s in spans]
    assert "bad numbers" == spans[-1].reason
    begins = [getattr(s, "from") for s in spans]
    assert begins[1:] == [s.until for s in spans[:-1]]
    assert not spans[-1].HasField("until")


async def test_gateways_are_listed_with_their_newest_report(client: ModelClient) -> None:
    late = model_pb2.ObservedModel(
        model="projects/p/models/late",
        generation=3,
        ready_releases=["releases/1", "releases/2"],
        failures={"releases/3": "too large"},
    )
    stub = client.stub

    async def listed(size: int, token: str = "") -> tuple[list[Any], str]:
        page = await stub.ListGateways(pb.ListGatewaysRequest(page_size=size, page_token=token))
        return list(page.gateways), page.next_page_token

    assert ([], "") == await listed(9)
    for gateway in ("b", "a", "c"):
        await stub.ReportServing(pb.ReportServingRequest(gateway_id=gateway))
    await stub.ReportServing(pb.ReportServingRequest(gateway_id="b", models=[late]))
    found, more = await listed(2)
    assert [("a", True, []), ("b", True, [late])] == [(g.id, g.live, list(g.observed)) for g in found]
    assert all(g.HasField("last_heartbeat") for g in found)
    assert (["c"], "") == ([g.id for g in (await listed(2, more))[0]], (await listed(2, more))[1])

    async def only_a_is_live() -> bool:
        await stub.ReportServing(pb.ReportServingRequest(gateway_id="a"))
        return [True, False, False] == [g.live for g in (await listed(9))[0]]

    await eventually(only_a_is_live, within=5)


async def test_a_gateway_that_only_watches_is_not_listed(client: ModelClient) -> None:
    async with watching(client) as next_state:
        await next_state()
        assert [] == list((await client.stub.ListGateways(pb.ListGatewaysRequest())).gateways)
