"""Edge tests for what serves: desired state, serving history, gateway reports."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest

from flywheel_common.grpc.channel import from_rpc_error
from flywheel_common.signature import InputSpec, Signature
from flywheel_common.tensors import Tensor
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.models.version import GoldenRows, ModelVersion
from flywheel_registry.serving.routing import Routing
from tests.support.builders.registry import CREATED_AT, ModelClient, add_model
from tests.support.eventually import eventually
from tests.support.servers.registry import refused

VERSION = ModelVersion(
    "",
    signature=Signature(inputs=(InputSpec("v__a", 5, tuple(map(str, range(1000)))),)),
    golden_rows=GoldenRows((Tensor("INPUT", 3, (1, 1), bytes(4)),), Tensor("SCORE", 3, (1,), bytes(4))),
    registered_at=CREATED_AT,
    check_problems=(),
)

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


async def specification(client: ModelClient, served: model_pb2.ServingReference) -> model_pb2.ServingRelease:
    """Fetch the specification of a reference and check its digest."""
    request = pb.GetServingSpecRequest(release=served.release, digest=served.digest)
    spec = (await client.stub.GetServingSpec(request)).spec
    assert hashlib.sha256(spec).hexdigest() == served.digest
    return model_pb2.ServingRelease.FromString(spec)


async def test_watchers_receive_a_snapshot_and_then_every_change(client: ModelClient) -> None:
    await client.create()
    async with watching(client) as next_state, watching(client, "projects/elsewhere") as elsewhere:
        for first_state in (await next_state(), await elsewhere()):
            assert (True, []) == (first_state.snapshot, list(first_state.models))
        _, a = await client.staged("first")
        first = await client.start(a.name)
        change = await next_state()
        (serving,) = change.models
        assert (False, client.model, 1) == (change.snapshot, serving.model, serving.generation)
        assert (False, a.name) == (serving.HasField("champion"), serving.challenger.release)
        await client.skip(first.name)
        (serving,) = (await next_state()).models
        assert (2, a.name) == (serving.generation, serving.champion.release)
        assert not serving.HasField("challenger") and not serving.warm
        _, b = await client.staged("second")
        rollout = await client.start(b.name)
        serving = (await next_state()).models[0]
        assert (3, a.name, b.name) == (
            serving.generation,
            serving.champion.release,
            serving.challenger.release,
        )
        assert (rollout.name, 0, 0) == (
            serving.rollout,
            serving.shadow_percent,
            serving.challenger_percent,
        )
        for expected in ((4, 100, 0), (5, 0, 5)):
            await client.skip(rollout.name, "known")
            serving = (await next_state()).models[0]
            assert expected == (serving.generation, serving.shadow_percent, serving.challenger_percent)
        async with watching(client, "projects/default") as late:
            snapshot = await late()
            assert (True, [serving]) == (snapshot.snapshot, list(snapshot.models))
        await client.stub.AbortRollout(pb.AbortRolloutRequest(name=rollout.name))
        serving = (await next_state()).models[0]
        assert (6, a.name, "") == (serving.generation, serving.champion.release, serving.rollout)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(elsewhere(), 0.2)


async def test_a_specification_stays_when_the_stage_of_its_version_changes(client: ModelClient) -> None:
    await client.create()
    version, a = await client.champion()
    async with watching(client) as next_state:
        before = (await next_state()).models[0].champion
        spec = await specification(client, before)
        assert a == spec.release
        assert (version.name, version.golden_rows, list(version.artifacts)) == (
            spec.model_version.name,
            spec.model_version.golden_rows,
            list(spec.model_version.artifacts),
        )
        _, b = await client.staged("second")
        await client.promote(b.model_version, **OVERRIDE)
        serving = (await next_state()).models[0]
        assert [before] == list(serving.warm), "archived, with the same digest"
        history = await client.stub.ListServingHistory(pb.ListServingHistoryRequest(parent=client.model))
        assert [history.spans[1].until] == list(serving.warm_since)
    with refused("ABORTED", "SPEC_CHANGED"):
        await client.stub.GetServingSpec(pb.GetServingSpecRequest(release=a.name, digest="0" * 64))
    with refused("NOT_FOUND", "UNKNOWN_RELEASE"):
        await client.stub.GetServingSpec(pb.GetServingSpecRequest(release=f"{client.model}/releases/9"))


async def test_a_rejected_version_is_no_longer_kept_warm(client: ModelClient) -> None:
    await client.create()
    releases = [(await client.champion("first"))[1]]
    for tag in ("second", "third"):
        _, release = await client.staged(tag)
        await client.promote(release.model_version, **OVERRIDE)
        releases.append(release)
    async with watching(client) as next_state:
        before = (await next_state()).models[0]
        assert [releases[1].name, releases[0].name] == [one.release for one in before.warm]
        reject = pb.RejectModelVersionRequest(name=releases[1].model_version, reason="wrong labels")
        await client.stub.RejectModelVersion(reject)
        after = (await next_state()).models[0]
        assert [releases[0].name] == [one.release for one in after.warm]
        assert (before.generation, before.champion) == (after.generation, after.champion)


async def test_bytes_per_change_do_not_grow_with_the_number_of_models(
    client: ModelClient, memory_store: MemoryStore
) -> None:
    async def serve(numbers: range) -> None:
        for number in numbers:
            name = f"projects/default/models/m{number:04d}"
            await add_model(memory_store, name, template=VERSION)
            async with memory_store.transaction() as records:
                await records.set_routing(name, Routing(1, champion=1))

    async def bytes_of_a_change(models: int, number: int) -> int:
        name = f"projects/default/models/m{number:04d}"
        async with watching(client) as next_state:
            state = await next_state()
            assert models == len(state.models)
            async with memory_store.transaction() as records:
                routing = await records.routing(name)
                await records.set_routing(name, replace(routing, generation=routing.generation + 1))
            change = await next_state()
        assert state.snapshot
        assert [name] == [model.model for model in change.models]
        return int(change.ByteSize())

    await serve(range(1))
    alone = await bytes_of_a_change(1, 0)
    await serve(range(1, 1000))
    among = await bytes_of_a_change(1000, 999)
    assert alone == among
    assert among < 300, "no golden rows, no vocabulary"


async def test_variants_stay_over_rollouts_and_are_watched(client: ModelClient) -> None:
    await client.create()

    async def set_variants(*variants: model_pb2.Variant) -> model_pb2.Model:
        request = pb.SetModelVariantsRequest(name=client.model, variants=variants, reason="holdback")
        return (await client.stub.SetModelVariants(request)).model

    staged, later = await client.staged("second")
    wanted = [
        model_pb2.Variant(name="hold", release=f"{client.model}/releases/2", percent=5),
        model_pb2.Variant(name="copy", release=later.name, shadow_percent=50),
    ]
    with refused("FAILED_PRECONDITION", "VARIANT_NOT_ALLOWED") as error:
        await set_variants(wanted[1])
    assert "serves yet" in error.message
    _, champion = await client.champion()
    assert champion.name == wanted[0].release
    async with watching(client) as next_state:
        assert not (await next_state()).models[0].variants
        assert wanted == list((await set_variants(*wanted)).variants)
        (serving,) = (await next_state()).models
        assert (3, serving.champion) == (serving.generation, serving.variants[0].release)
        assert [("hold", 5, 0), ("copy", 0, 50)] == [
            (v.name, v.percent, v.shadow_percent) for v in serving.variants
        ]
        assert later == (await specification(client, serving.variants[1].release)).release
        third, release = await client.staged("third")
        await client.promote(third.name, **OVERRIDE)
        (serving,) = (await next_state()).models
        assert (release.name, 2) == (serving.champion.release, len(serving.variants))
    with refused("FAILED_PRECONDITION", "VARIANT_NOT_ALLOWED"):
        await client.stub.RejectModelVersion(pb.RejectModelVersionRequest(name=staged.name, reason="bad"))
    assert [] == list((await set_variants()).variants)
    await client.stub.RejectModelVersion(pb.RejectModelVersionRequest(name=staged.name, reason="bad"))
    texts = [(e.from_state, e.to_state) for e in await client.audit() if e.action == "VARIANTS"]
    described = "hold release 2 5 % copies 0 %, copy release 1 0 % copies 50 %"
    assert [("", described), (described, "")] == texts


async def test_variants_need_shares_names_and_versions_that_may_serve(client: ModelClient) -> None:
    await client.create()
    _, champion = await client.champion()
    staged, release = await client.staged("second")

    async def refusal(*variants: dict[str, Any]) -> str:
        messages = [model_pb2.Variant(**{"release": champion.name, **fields}) for fields in variants]
        try:
            await client.stub.SetModelVariants(
                pb.SetModelVariantsRequest(name=client.model, variants=messages)
            )
        except grpc.RpcError as error:
            return from_rpc_error(error).reason
        return ""

    a = {"name": "a", "percent": 10}
    assert "INVALID_VARIANTS" == await refusal(a, a)
    assert "INVALID_VARIANTS" == await refusal({"name": "a"})
    assert "INVALID_VARIANTS" == await refusal({"name": "a", "percent": 100.5})
    assert "INVALID_VARIANTS" == await refusal({"name": "a", "percent": float("nan")})
    assert "INVALID_VARIANTS" == await refusal(*({"name": f"v{n}", "percent": 1} for n in range(11)))
    assert "INVALID_ID" == await refusal({"name": "A b", "percent": 1})
    assert "UNKNOWN_RELEASE" == await refusal({**a, "release": f"{client.model}/releases/9"})
    assert "WRONG_MODEL" == await refusal({**a, "release": "projects/default/models/other/releases/1"})
    assert "VARIANT_NOT_ALLOWED" == await refusal({**a, "release": release.name}), "STAGING cannot answer"
    assert "" == await refusal({"name": "a", "shadow_percent": 10, "release": release.name})
    assert "STAGING" == await client.stage(staged.name)
    await client.start(release.name)
    assert "VARIANT_NOT_ALLOWED" == await refusal(a), "a rollout is active"


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
