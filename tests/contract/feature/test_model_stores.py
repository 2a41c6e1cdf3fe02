"""Contract tests for the uses of feature sets by models: in memory and from the registry service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from flywheel_common.errors import Unavailable
from flywheel_common.grpc.channel import channel
from flywheel_feature.apply.lineage import Models, ModelUse
from flywheel_feature.fakes.definitions import MemoryModels
from flywheel_feature.store.grpc.model_uses import RegistryModels
from flywheel_local.s3 import S3
from flywheel_protos.registry.v1 import registry_pb2
from flywheel_registry.config import RegistrySettings
from tests.support.builders.registry import ModelClient as Story
from tests.support.ports import free_port
from tests.support.servers.registry import running_registry as running


@dataclass
class Registered:
    """Models, and a function that registers them."""

    models: Models
    version: Callable[[str, bool], Awaitable[str]]
    """(feature set version, rejected) → name of a new model version that uses it."""


@pytest.fixture(params=["memory", "registry"])
def registered(request: pytest.FixtureRequest) -> Registered:
    if request.param == "registry":
        found: Registered = request.getfixturevalue("in_registry")
        return found
    models, made = MemoryModels(), []

    async def version(feature_set: str, rejected: bool) -> str:
        made.append(f"projects/default/models/late/versions/{len(made) + 1}")
        _, project, _, set_id, _, number = feature_set.split("/")
        models.add(project, ModelUse(made[-1], set_id, int(number), rejected))
        return made[-1]

    return Registered(models, version)


@pytest_asyncio.fixture
async def in_registry(database: str, bucket: str, s3: S3) -> Any:
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
        story = Story(stub)
        await story.create()

        async def version(feature_set: str, rejected: bool) -> str:
            name = (await story.version(upload=False, feature_set=feature_set)).name
            if rejected:
                await stub.RejectModelVersion(
                    registry_pb2.RejectModelVersionRequest(name=name, reason="worse")
                )
            return name

        async with channel(stub.address, client_name="flywheel-feature") as opened:
            yield Registered(RegistryModels(opened), version)


async def test_all_uses_of_feature_sets_are_listed_also_by_rejected_models(registered: Registered) -> None:
    one, two = (f"projects/default/featureSets/late/versions/{n}" for n in (1, 2))
    assert [] == list(await registered.models.feature_uses("default"))
    first = await registered.version(one, False)
    second = await registered.version(two, True)
    other = await registered.version("projects/other/featureSets/late/versions/1", False)
    assert {ModelUse(first, "late", 1), ModelUse(second, "late", 2, retired=True)} == set(
        await registered.models.feature_uses("default")
    )
    assert [ModelUse(other, "late", 1)] == list(await registered.models.feature_uses("other"))
    assert [] == list(await registered.models.feature_uses("none"))


async def test_unreachable_registry_is_unavailable() -> None:
    async with channel(f"127.0.0.1:{free_port()}", client_name="flywheel-feature") as opened:
        with pytest.raises(Unavailable):
            await RegistryModels(opened).feature_uses("default")
