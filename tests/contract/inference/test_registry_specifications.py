"""The gateway reads desired state, changes and specifications from a registry in memory."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import numpy as np

from flywheel_common.grpc.channel import channel
from flywheel_inference.encoding.serving_messages import desired_change, release_of_spec, saved_state
from flywheel_inference.fakes.saved_state import MemoryState
from flywheel_inference.releases.release import ReleaseSpec
from flywheel_inference.serving.desired_models import DesiredModels
from flywheel_inference.store.grpc.registry import GrpcRegistry
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_registry.fakes.store import MemoryStore
from tests.support.builders.registry import ModelClient
from tests.support.servers.registry import running_memory_registry


async def test_a_gateway_reads_what_the_registry_serves() -> None:
    async with running_memory_registry(MemoryStore()) as stub:
        client = ModelClient(stub)
        await client.create()
        version, release = await client.champion()
        holdback = model_pb2.Variant(name="hold", release=release.name, percent=5)
        async with channel(stub.address, client_name="tests", health_check=False) as opened:
            registry, saved = GrpcRegistry(opened, "gateway", ""), MemoryState()
            desired = DesiredModels(registry, saved, release_of_spec)
            async with aclosing(registry.watch()) as changes:
                await desired.apply(desired_change(await asyncio.wait_for(anext(changes), 10)))
                (model,) = desired.models
                spec = model.champion
                assert isinstance(spec, ReleaseSpec), spec
                assert (spec.name, spec.model_version) == (release.name, version.name)
                assert [a.sha256 for a in spec.artifacts] == [a.sha256 for a in version.artifacts]
                assert ["view__a"] == [i.name for i in spec.signature.inputs]
                np.testing.assert_array_equal(spec.golden.tensors["INPUT"], [[1.0]])
                await stub.SetModelVariants(
                    pb.SetModelVariantsRequest(name=client.model, variants=[holdback])
                )
                await desired.apply(desired_change(await asyncio.wait_for(anext(changes), 10)))
            (model,) = desired.models
            assert [("hold", spec, 5.0)] == [(v.name, v.release, v.percent) for v in model.variants]
            # The saved state and the specifications on disk are enough without the registry.
            offline = DesiredModels(registry, saved, release_of_spec)
            await offline.apply(desired_change(saved_state(desired.routed)), offline=True)
            (booted,) = offline.models
            assert isinstance(booted.champion, ReleaseSpec)
            assert (booted.generation, booted.champion.key) == (model.generation, spec.key)
            assert [(v.name, v.percent) for v in booted.variants] == [("hold", 5.0)]
