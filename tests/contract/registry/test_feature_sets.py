"""Contract tests of the feature sets that a check compares, in memory and over gRPC to a stand-in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from flywheel_common.errors import Unavailable
from flywheel_common.grpc.channel import channel
from flywheel_protos.types.v1 import value_pb2
from flywheel_registry.artifacts.graph import Feature
from flywheel_registry.artifacts.ports import FeatureSets
from flywheel_registry.fakes.checks import MemoryFeatureSets
from flywheel_registry.store.grpc.features import GrpcFeatureSets
from tests.support.peers.registry import serving_features

NAME = "projects/p/featureSets/f/versions/1"
FEATURES = {"v__a": Feature(4), "v__b": Feature(24, 3)}


@dataclass
class Adapter:
    port: FeatureSets
    """Knows NAME with FEATURES."""
    shut_down: Callable[[], None]


@pytest.fixture(params=["memory", "grpc"])
async def sets(request: pytest.FixtureRequest) -> AsyncIterator[Adapter]:
    if request.param == "memory":
        memory = MemoryFeatureSets()
        memory.sets[NAME] = FEATURES

        def stop() -> None:
            memory.down = True

        yield Adapter(memory, stop)
        return
    async with serving_features() as fake:
        fake.sets[NAME] = [
            value_pb2.Field(name=name, data_type=f.data_type, vector_size=f.vector_size)  # type: ignore[arg-type]
            for name, f in FEATURES.items()
        ]
        async with channel(fake.address, client_name="tests", retries=False) as opened:

            def shut_down() -> None:
                fake.down = True

            yield Adapter(GrpcFeatureSets(opened, 5.0), shut_down)


async def test_the_features_of_a_set_have_their_types_and_sizes(sets: Adapter) -> None:
    assert await sets.port.features(NAME) == FEATURES


async def test_an_unknown_set_has_no_features(sets: Adapter) -> None:
    assert await sets.port.features("projects/p/featureSets/other") is None


async def test_an_outage_is_unavailable_and_not_an_unknown_set(sets: Adapter) -> None:
    sets.shut_down()
    with pytest.raises(Unavailable):
        await sets.port.features(NAME)
