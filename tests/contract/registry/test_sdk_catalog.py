"""Search, lineage, aliases, tags, deletion and restoration by RPC, SDK and CLI, on a registry in memory."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

import flywheel as fw
from flywheel.cli.option_values import parse_bounds, parse_tags
from flywheel_protos.registry.v1 import artifact_pb2, model_pb2, registry_pb2, search_pb2
from tests.support.builders.onnx_models import constant_half
from tests.support.builders.registry import ModelClient
from tests.support.commands import flywheel
from tests.support.servers.registry import refused


@pytest.fixture
async def sdk(client: ModelClient) -> AsyncIterator[fw.Client]:
    async with fw.Client(registry=client.stub.address) as opened:
        yield opened


async def cli(client: ModelClient, *command: str) -> Any:
    """Run `flywheel models` against the registry."""
    return await flywheel("models", *command, registry=client.stub.address)


async def test_versions_of_all_models_are_searched(client: ModelClient, sdk: fw.Client) -> None:
    other = ModelClient(client.stub, "other")
    await client.create()
    await other.create()
    for model, auc in ((client, 0.5), (other, 0.9), (client, 0.7)):
        await model.version(auc=auc, tags={"team": "ops"})
    found = await sdk.search_versions(metrics={"auc": (0.6, None)}, order_by="auc", descending=True)
    names = [f"{other.model}/versions/1", f"{client.model}/versions/2"]
    assert names == [v.name for v in found.items]
    assert not any(v.HasField("golden_rows") for v in found.items if v.golden_rows.tensors)
    request = search_pb2.SearchModelVersionsRequest(
        parent="projects/default", order_by_metric="auc", page_size=1
    )
    seen = []
    while True:
        page = await client.stub.SearchModelVersions(request)
        seen += [v.metrics["auc"] for v in page.model_versions]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert [0.5, 0.7, 0.9] == seen
    shown = await cli(client, "search", "--metric", "auc>=0.6", "--tag", "team=ops", "--model", "other")
    assert (0, 1) == (shown.exit_code, shown.output.count("/versions/")), shown.output
    assert 1 == (await cli(client, "search", "--metric", "auc=0.6")).exit_code


@pytest.mark.parametrize(
    ("metric", "found"),
    [("auc>0.5", [2, 3]), ("auc>=0.5", [1, 2, 3]), ("auc<0.7", [1]), ("auc<=0.7", [1, 2]), ("auc>0.9", [])],
)
async def test_strict_bounds_leave_out_the_limit(client: ModelClient, metric: str, found: list[int]) -> None:
    await client.create()
    for auc in (0.5, 0.7, 0.9):
        await client.version(auc=auc)
    command = ["--json", "models", "search", "--metric", metric, "--sort", "oldest"]
    shown = await flywheel(*command, registry=client.stub.address)
    assert 0 == shown.exit_code, shown.output
    assert list(map(str, found)) == re.findall(r'"name": "[^"]+/versions/(\d+)"', shown.output)


async def test_versions_are_listed_by_name_and_oldest_first(client: ModelClient, sdk: fw.Client) -> None:
    other = ModelClient(client.stub, "early")
    await client.create()
    await other.create()
    late = [(await client.version()).name for _ in range(2)]
    early = (await other.version()).name

    async def names(**order: Any) -> list[str]:
        return [v.name for v in (await sdk.search_versions(**order)).items]

    assert [early, *late[::-1]] == await names()
    assert [*late, early] == await names(sort="oldest")
    assert [early, *late] == await names(sort="name")
    assert [*late[::-1], early] == await names(sort="name", descending=True)
    request = search_pb2.SearchModelVersionsRequest(
        parent="projects/default", order=search_pb2.SEARCH_ORDER_NAME, page_size=2
    )
    page = await client.stub.SearchModelVersions(request)
    request.page_token = page.next_page_token
    rest = await client.stub.SearchModelVersions(request)
    assert [early, *late] == [v.name for v in (*page.model_versions, *rest.model_versions)]
    request.order = search_pb2.SEARCH_ORDER_OLDEST_FIRST
    with refused("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN"):
        await client.stub.SearchModelVersions(request)


@pytest.mark.parametrize(
    "condition",
    [
        {"metrics": [search_pb2.MetricBounds(metric="auc", min=2, max=1)]},
        {"metrics": [search_pb2.MetricBounds(min=2)]},
        {"metrics": [search_pb2.MetricBounds(metric="auc", min=float("nan"))]},
        {"metrics": [search_pb2.MetricBounds(metric="auc")] * 21},
        {"sources": [""]},
        {"descending": True},
        {"descending": True, "order": search_pb2.SEARCH_ORDER_OLDEST_FIRST},
        {"order_by_metric": "auc", "order": search_pb2.SEARCH_ORDER_NAME},
    ],
)
async def test_a_search_that_cannot_be_met_is_refused(client: ModelClient, condition: Any) -> None:
    request = search_pb2.SearchModelVersionsRequest(parent="projects/default", **condition)
    with refused("INVALID_ARGUMENT", "INVALID_SEARCH"):
        await client.stub.SearchModelVersions(request)


async def test_a_page_token_of_another_search_is_refused(client: ModelClient) -> None:
    await client.create()
    for _ in range(2):
        await client.version()
    request = search_pb2.SearchModelVersionsRequest(parent="projects/default", page_size=1)
    token = (await client.stub.SearchModelVersions(request)).next_page_token
    request.page_token, request.order_by_metric = token, "auc"
    with refused("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN"):
        await client.stub.SearchModelVersions(request)


async def test_lists_carry_golden_rows_only_when_asked(client: ModelClient) -> None:
    await client.create()
    await client.version()
    request = registry_pb2.ListModelVersionsRequest(parent=client.model)
    (listed,) = (await client.stub.ListModelVersions(request)).model_versions
    assert not listed.golden_rows.tensors
    request.with_golden_rows = True
    (listed,) = (await client.stub.ListModelVersions(request)).model_versions
    assert 1 == len(listed.golden_rows.tensors)


async def test_an_alias_is_set_moved_read_and_deleted(client: ModelClient, sdk: fw.Client) -> None:
    await client.create()
    first, second = await client.version(), await client.version()
    assert 0 == (await cli(client, "alias", "late/1", "best", "--protected", "--reason", "why")).exit_code
    moved = await sdk.set_alias("best", "late/2")
    assert (second.name, True) == (moved.model_version, moved.protected)
    assert second.name == (await sdk.version_of_alias("late", "best")).name
    listed = await cli(client, "aliases", "late")
    assert "aliases/best" in listed.output
    with refused("FAILED_PRECONDITION", "VERSION_IN_USE"):
        await client.stub.DeleteModelVersion(registry_pb2.DeleteModelVersionRequest(name=second.name))
    assert 0 == (await cli(client, "alias", "late", "best", "--delete")).exit_code
    with refused("NOT_FOUND", "UNKNOWN_ALIAS"):
        await client.stub.GetModelAlias(search_pb2.GetModelAliasRequest(name=f"{client.model}/aliases/best"))
    states = [(e.from_state, e.to_state) for e in await client.audit() if e.action == "ALIAS"]
    one, two = f"{first.name} protected", f"{second.name} protected"
    assert [("", one), (one, two), (two, "")] == states


async def test_an_alias_of_a_rejected_version_is_refused(client: ModelClient, sdk: fw.Client) -> None:
    await client.create()
    await client.version()
    await sdk.reject("late/1", "bad")
    with pytest.raises(fw.FlywheelError) as error:
        await sdk.set_alias("best", "late/1")
    assert "REJECTED_ALIAS" == error.value.reason


async def test_tags_are_changed_and_bounded(client: ModelClient, sdk: fw.Client) -> None:
    await client.create()
    await client.version(tags={"a": "1", "b": "2"})
    assert 0 == (await cli(client, "tag", "late/1", "c=3", "--remove", "a")).exit_code
    tagged = await sdk.tag("late/1", {"b": "x"}, remove=["missing"])
    assert {"b": "x", "c": "3"} == dict(tagged.tags)
    for tags in ({"": "v"}, {"k" * 129: "v"}, {"k": "v" * 1025}, {str(i): "v" for i in range(101)}):
        with pytest.raises(fw.FlywheelError) as error:
            await sdk.tag("late/1", tags)
        assert "INVALID_TAGS" == error.value.reason
    changes = [e.reason for e in await client.audit() if e.action == "TAG"]
    assert ["c=3, -a", "b=x"] == changes


async def test_lineage_leads_both_ways(client: ModelClient, sdk: fw.Client) -> None:
    await client.create()
    run, parent = "projects/default/runs/r", f"{client.model}/versions/1"
    await client.version()
    content = constant_half()
    declared = model_pb2.ModelVersion(training_run=run, parent_version=parent)
    declared.artifacts.add(name="model.onnx", size_bytes=len(content), sha256="ab" * 32)
    request = registry_pb2.CreateModelVersionRequest(parent=client.model, model_version=declared)
    child = (await client.stub.CreateModelVersion(request)).model_version.name
    release = await client.release(parent)

    def edges(found: Any) -> list[tuple[str, str, str]]:
        return [(e.source, e.relation, e.target) for e in found]

    of_child = await sdk.model_lineage("late/2")
    assert [(run, "TRAINING_RUN", child), (parent, "PARENT_VERSION", child)] == edges(of_child.upstream)
    assert [] == edges(of_child.downstream)
    of_parent = await sdk.model_lineage(parent)
    assert [(parent, "PARENT_VERSION", child), (parent, "RELEASE", release.name)] == edges(
        of_parent.downstream
    )
    assert [(run, "TRAINING_RUN", child)] == edges((await sdk.model_lineage(run)).downstream)
    assert [(parent, "RELEASE", release.name)] == edges((await sdk.model_lineage(release.name)).upstream)
    assert "TRAINING_RUN" in (await cli(client, "lineage", "late/2")).output
    with refused("INVALID_ARGUMENT", "INVALID_NAME"):
        await client.stub.GetLineage(search_pb2.GetLineageRequest(resource="runs/r"))


async def test_a_served_release_is_not_deleted_and_others_are_restored(
    client: ModelClient, sdk: fw.Client
) -> None:
    await client.create()
    version, release = await client.champion()
    spare = await client.release(version.name)
    with refused("FAILED_PRECONDITION", "RELEASE_IN_USE"):
        await client.stub.DeleteRelease(artifact_pb2.DeleteReleaseRequest(name=release.name))
    assert 0 == (await cli(client, "delete", spare.name, "--reason", "unused")).exit_code
    with refused("NOT_FOUND", "UNKNOWN_RELEASE"):
        await client.stub.GetRelease(registry_pb2.GetReleaseRequest(name=spare.name))
    assert 0 == (await cli(client, "restore", spare.name)).exit_code
    assert spare == (await client.stub.GetRelease(registry_pb2.GetReleaseRequest(name=spare.name))).release
    with pytest.raises(fw.FlywheelError) as error:
        await sdk.restore_registered(spare.name)
    assert "NOT_RESTORABLE" == error.value.reason


async def test_a_model_that_serves_is_deleted_only_when_it_stops(client: ModelClient, sdk: fw.Client) -> None:
    await client.create()
    version, release = await client.champion()
    with pytest.raises(fw.FlywheelError) as error:
        await sdk.delete_registered(client.model)
    assert "MODEL_IN_USE" == error.value.reason
    await sdk.delete_registered(client.model, "retired", stop_serving=True)
    with refused("NOT_FOUND", "UNKNOWN_MODEL"):
        await client.stub.GetModel(registry_pb2.GetModelRequest(name=client.model))
    with refused("NOT_FOUND", "UNKNOWN_MODEL_VERSION"):
        await client.stub.GetModelVersion(registry_pb2.GetModelVersionRequest(name=version.name))
    with refused("ALREADY_EXISTS", "MODEL_EXISTS"):
        await client.create()
    assert "DELETE" == (await client.audit())[-1].action
    await sdk.restore_registered(client.model, "needed")
    model = (await client.stub.GetModel(registry_pb2.GetModelRequest(name=client.model))).model
    assert ("", "ARCHIVED") == (model.production_release, await client.stage(version.name))
    back = await sdk.rollback("late", "serve again")
    assert release.name == back.model.production_release


async def test_what_served_at_a_time_is_one_read(client: ModelClient, sdk: fw.Client) -> None:
    await client.create()
    before = fw.connection.now()
    _, release = await client.champion()
    served = await sdk.served_at("late", fw.connection.now())
    assert (release.name, None) == (served and served.release, await sdk.served_at("late", before))
    request = registry_pb2.ListServingHistoryRequest(parent=client.model, at={"seconds": 1 << 60})
    with refused("INVALID_ARGUMENT", "INVALID_VALUE"):
        await client.stub.ListServingHistory(request)


async def test_releases_of_a_rejected_version_are_no_longer_kept_warm(
    client: ModelClient, sdk: fw.Client
) -> None:
    await client.create()
    await client.champion(b"first")
    version, _ = await client.staged(b"second")
    await client.promote(version.name, to_stage="STAGE_PRODUCTION", override=True, reason="q")
    watch = client.stub.WatchServing(registry_pb2.WatchServingRequest(gateway_id="g"))
    snapshot = await watch.read()
    assert [[1]] == [numbers_of(model) for model in snapshot.models]
    await sdk.reject("late/1", "leaks the label")
    change = await watch.read()
    assert [[]] == [numbers_of(model) for model in change.models]
    watch.cancel()


def numbers_of(model: model_pb2.ServingModel) -> list[int]:
    """The releases that gateways keep loaded."""
    return [int(one.release.rsplit("/", 1)[1]) for one in model.warm]


def test_conditions_of_the_command_are_parsed() -> None:
    assert {"auc": (0.5, 0.75), "loss": (None, 1.0)} == parse_bounds(["auc>=0.5", "auc<=0.75", "loss<=1"])
    assert {"a": "b=c"} == parse_tags(["a=b=c"])
    assert {"auc": (0.75, 0.8)} == parse_bounds(["auc>=0.5", "auc>=0.75", "auc<=0.8", "auc<=0.9"])
    for text in ("auc", "auc>=x", ">=1", "auc=1", "auc>nan"):
        with pytest.raises(ValueError, match="neither"):
            parse_bounds([text])
