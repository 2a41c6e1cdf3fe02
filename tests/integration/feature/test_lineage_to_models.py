"""Lineage from definitions to the models that read them, with a running registry."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

import flywheel as fw
from flywheel_local.s3 import S3
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.registry.v1 import registry_pb2
from flywheel_registry.config import RegistrySettings
from tests.support.builders.registry import ModelClient as Story
from tests.support.servers.feature import PARENT
from tests.support.servers.registry import running_registry as running


@pytest_asyncio.fixture
async def story(database: str, bucket: str, s3: S3, environment: dict[str, str]) -> AsyncIterator[Story]:
    settings = RegistrySettings(
        listen="127.0.0.1:0",
        metrics_listen="",
        drain_seconds=0.0,
        grace_seconds=0.2,
        log_rpcs=False,
        postgres_dsn=database,
        kafka_bootstrap="127.0.0.1:1",
        s3_endpoint=s3.endpoint,
        s3_access_key=s3.access_key,
        s3_secret_key=s3.secret_key,
        s3_bucket=bucket,
        monitor_address="127.0.0.1:1",
    )
    async with running(settings) as stub:
        environment["FLYWHEEL_FEATURE_REGISTRY_ADDRESS"] = stub.address
        yield Story(stub)


@pytest.fixture(params=["down", "hangs"])
def no_registry(request: pytest.FixtureRequest, environment: dict[str, str]) -> Iterator[None]:
    """A registry address where nothing listens, or where connections are accepted but not answered."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1] if request.param == "hangs" else 1
        environment["FLYWHEEL_FEATURE_REGISTRY_ADDRESS"] = f"127.0.0.1:{port}"
        yield


@pytest_asyncio.fixture
async def registered_client(story: Story, client: fw.Client) -> fw.Client:
    """A client of a feature service that uses the registry, which is started first."""
    return client


def definitions(ttl: str = "1d") -> Any:
    plane = fw.Entity("plane", {"tailnum": fw.STRING})
    schema = {"tailnum": fw.STRING, "at": fw.TIMESTAMP, "built": fw.FLOAT64}
    planes = fw.ParquetSource("planes", schema, timestamp="at", uri="s3://bucket/planes/")
    facts = fw.BatchView("facts", plane, planes, {"built": fw.FLOAT64}, ttl=ttl)
    late, spare = fw.FeatureSet("late", ["facts:built"]), fw.FeatureSet("spare", ["facts:built"])
    return fw.compile_definitions([facts, late, spare], "default")


async def version(story: Story, feature_set: str) -> str:
    return (await story.version(upload=False, feature_set=feature_set)).name


async def delete(client: fw.Client, *names: str) -> Any:
    return await client.feature.ApplyDefinitions(
        pb.ApplyDefinitionsRequest(parent=PARENT, delete_names=[f"{PARENT}/{n}" for n in names]), timeout=2.0
    )


@pytest.mark.timeout(60)
async def test_lineage_reaches_model_versions_and_protects_their_definitions(
    story: Story, registered_client: fw.Client
) -> None:
    client = registered_client
    await client.apply(definitions())
    await story.create()
    trained = await version(story, f"{PARENT}/featureSets/late/versions/1")
    rejected = await version(story, f"{PARENT}/featureSets/late/versions/1")
    await story.stub.RejectModelVersion(registry_pb2.RejectModelVersionRequest(name=rejected, reason="worse"))
    found = await client.feature.GetLineage(pb.GetLineageRequest(name=f"{PARENT}/sources/planes"))
    assert {trained, rejected} <= {e.reader for e in found.downstream} and not found.warnings
    up = await client.feature.GetLineage(pb.GetLineageRequest(name=trained))
    assert f"{PARENT}/sources/planes" in {e.read for e in up.upstream}

    changed = await client.apply(definitions("2d"))
    (view,) = [c for c in changed.changes if "/views/" in c.name]
    assert trained in view.readers and rejected not in view.readers

    for names in (["featureSets/late"], ["featureSets/late", "featureSets/spare", "views/facts"]):
        with pytest.raises(fw.FlywheelError) as raised:
            await delete(client, *names)
        assert raised.value.reason == "IN_USE" and trained in raised.value.message
    assert len((await delete(client, "featureSets/spare")).changes) == 1

    await story.stub.RejectModelVersion(
        registry_pb2.RejectModelVersionRequest(name=trained, reason="worse too")
    )
    assert len((await delete(client, "featureSets/late", "views/facts")).changes) == 2


@pytest.mark.timeout(60)
async def test_the_registry_names_the_versions_that_use_a_feature_set(
    story: Story, registered_client: fw.Client
) -> None:
    await registered_client.apply(definitions())
    await story.create()
    spare = await version(story, f"{PARENT}/featureSets/spare/versions/1")
    names = [await version(story, f"{PARENT}/featureSets/late/versions/1") for _ in range(3)]
    await version(story, "projects/other/featureSets/late/versions/1")
    found: list[tuple[str, str]] = []
    request = registry_pb2.ListFeatureUsesRequest(parent=PARENT, page_size=2)
    while True:
        page = await story.stub.ListFeatureUses(request)
        found += [(u.model_version, u.feature_set.rpartition("featureSets/")[2]) for u in page.uses]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert found == [(spare, "spare/versions/1"), *((n, "late/versions/1") for n in names)]
    with pytest.raises(fw.FlywheelError) as raised:
        await delete(registered_client, "featureSets/spare")
    assert spare in raised.value.message


@pytest.mark.timeout(60)
async def test_without_the_registry_deletions_fail_and_new_versions_do_not(
    no_registry: None, client: fw.Client
) -> None:
    first = await client.apply(definitions())
    assert len(first.changes) == 5 and "registry" in first.warnings[0]
    with pytest.raises(fw.Unavailable) as raised:
        await delete(client, "featureSets/spare")
    assert raised.value.reason == "REGISTRY_DOWN"
    again = await client.apply(definitions("3d"))
    assert f"{PARENT}/views/facts/versions/2" in {c.name for c in again.changes}


async def test_a_plan_lists_exactly_the_changes_of_the_apply(client: fw.Client) -> None:
    for ttl, owner in (("1d", ""), ("1d", ""), ("2d", ""), ("2d", "ops"), ("1d", "data"), ("1d", "data")):
        sent = definitions(ttl)
        for item in (*sent.views, *sent.entities, *sent.feature_sets):
            item.owner = owner
        planned, done = await client.apply(sent, plan=True), await client.apply(sent)
        assert list(planned.changes) == list(done.changes)
        again = await client.apply(sent)
        assert {c.action for c in again.changes} == {pb.PlannedChange.ACTION_UNCHANGED}
