"""What a change of one of 1,000 models costs each of 20 gateways, in bytes, and the registry in memory."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

import flywheel as fw
from bench import measure
from bench.common.deployment import Deployment
from flywheel_common.clock import SystemClock
from flywheel_common.grpc.channel import channel
from flywheel_common.postgres.pool import create_pool
from flywheel_protos.registry.v1 import model_pb2, registry_pb2, registry_pb2_grpc
from flywheel_protos.types.v1 import value_pb2
from flywheel_registry.api import convert_models
from flywheel_registry.api.convert_events import to_event
from flywheel_registry.audit.journal import Journal
from flywheel_registry.models.model import Model
from flywheel_registry.releases.release import Release
from flywheel_registry.serving.champion import replace_champion
from flywheel_registry.stages.transitions import Stage
from flywheel_registry.store.postgres.store import PostgresStore
from tests.support.builders.onnx_models import golden_rows

MODELS, GATEWAYS, CHANGES = 1000, 20, 20
FEATURES, GOLDEN_ROWS = 50, 100
FRAME_BYTES = 5
"""Of gRPC, for each message."""
LOAD_SECONDS = 120.0
"""For the snapshot of all models, which the registry first reads one by one."""
WAIT_SECONDS = 30.0
NAMES = (
    f"a change of 1 of {MODELS} models, {GATEWAYS} gateways: most bytes for each gateway",
    f"a change of 1 of {MODELS} models, {GATEWAYS} gateways: until the last one has it, p50",
    f"resident memory with {MODELS} models and {GATEWAYS} gateways",
)


def run(deployment: Deployment, only: str) -> Iterator[measure.Row]:
    """Yield all rows when `only` is in the name of one."""
    if not any(only in name for name in NAMES):
        return
    sizes, seconds, resident = asyncio.run(_measure(deployment))
    yield measure.row(NAMES[0], max(sizes) / 1024, "KiB", measure.at_most(64, of_value=True))
    yield measure.row(NAMES[1], statistics.median(seconds) * 1000, "ms", None)
    yield measure.row(NAMES[2], resident, "MiB", measure.at_most(150, of_value=True))


def _name(number: int) -> str:
    return f"projects/fan-out/models/m{number:04d}"


async def _fill(dsn: str) -> None:
    """Store MODELS models that each serve a release."""
    inputs = [
        model_pb2.SignatureInput(name=f"view__{i}", data_type=value_pb2.DATA_TYPE_FLOAT64)
        for i in range(FEATURES)
    ]
    rows = np.random.default_rng(0).random((GOLDEN_ROWS, FEATURES)).astype(np.float32)
    declared = model_pb2.ModelVersion(
        signature=model_pb2.Signature(inputs=inputs),
        golden_rows=golden_rows(rows, rows.mean(axis=1)),
        artifacts=[model_pb2.Artifact(name="model.onnx", size_bytes=1, sha256="cd" * 32)],
    )
    async with create_pool(dsn) as pool:
        store = PostgresStore(pool, to_event)
        for number in range(MODELS):
            await _add(store, declared, _name(number), new=True)


async def _add(store: PostgresStore, declared: Any, name: str, *, new: bool = False) -> str:
    """Add a version with a release that serves from now on, and return the release's name."""
    at = datetime.now(UTC)
    async with store.transaction() as records:
        if new:
            await records.add_model(Model(name, created_at=at))
        else:
            await records.lock(name)
        wanted = replace(convert_models.version(declared, name), registered_at=at, stage=Stage.NONE)
        version = await records.add_version(wanted)
        release = await records.add_release(Release(name, version.number, created_at=at))
        for stage in (Stage.STAGING, Stage.CANDIDATE):
            await records.move_version(version, stage, at, "bench")
            found = await records.version(name, version.number)
            assert found is not None
            version = found
        journal = Journal(records, name, SystemClock().now(), "bench")
        await replace_champion(records, journal, release, version, "bench")
    return release.name


class Gateway:
    """A watcher that fetches each specification that it does not know, as a gateway does."""

    def __init__(self, stub: Any, name: str) -> None:
        self._stub = stub
        self._name = name
        self._known: set[str] = set()
        self.received = 0
        self.generations: dict[str, int] = {}
        self.changed = asyncio.Event()

    async def run(self) -> None:
        request = registry_pb2.WatchServingRequest(gateway_id=self._name, parent="projects/fan-out")
        async for state in self._stub.WatchServing(request):
            self.received += state.ByteSize() + FRAME_BYTES
            for model in state.models:
                # The specifications of the snapshot are known from the disk.
                if not state.snapshot and model.champion.digest not in self._known:
                    await self._fetch(model.champion)
                self._known.add(model.champion.digest)
                self.generations[model.model] = model.generation
            self.changed.set()

    async def _fetch(self, reference: Any) -> None:
        request = registry_pb2.GetServingSpecRequest(release=reference.release, digest=reference.digest)
        spec = await self._stub.GetServingSpec(request)
        self.received += spec.ByteSize() + FRAME_BYTES

    async def wait_for_all(self) -> None:
        async with asyncio.timeout(LOAD_SECONDS):
            while len(self.generations) < MODELS:
                self.changed.clear()
                await self.changed.wait()

    async def wait(self, name: str, generation: int) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while self.generations.get(name, 0) < generation:
                self.changed.clear()
                await self.changed.wait()


async def _measure(deployment: Deployment) -> tuple[list[int], list[float], float]:
    """Return bytes per gateway and change, seconds per change, and the registry's resident memory in MiB."""
    await _fill(deployment.dsn)
    sizes, seconds = [], []
    async with AsyncExitStack() as stack:
        gateways = []
        for number in range(GATEWAYS):
            opened = await stack.enter_async_context(
                channel(deployment.address, client_name=f"gateway-{number}", health_check=False)
            )
            gateways.append(Gateway(registry_pb2_grpc.RegistryServiceStub(opened), f"fan-out-{number}"))
        client = await stack.enter_async_context(fw.Client(registry=deployment.address))
        running = [asyncio.create_task(gateway.run()) for gateway in gateways]
        try:
            await asyncio.gather(*(gateway.wait_for_all() for gateway in gateways))
            pool = await stack.enter_async_context(create_pool(deployment.dsn))
            store = PostgresStore(pool, to_event)
            first = registry_pb2.GetModelVersionRequest(name=f"{_name(0)}/versions/1")
            declared = (await client.registry.GetModelVersion(first)).model_version
            for number in range(CHANGES):
                name = _name(number * (MODELS // CHANGES))
                before = [gateway.received for gateway in gateways]
                wanted = gateways[0].generations[name] + 1
                began = time.perf_counter()
                await _add(store, declared, name)
                await asyncio.gather(*(gateway.wait(name, wanted) for gateway in gateways))
                seconds.append(time.perf_counter() - began)
                sizes += [g.received - b for g, b in zip(gateways, before, strict=True)]
            resident = deployment.resident_mib
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
    return sizes, seconds, resident
