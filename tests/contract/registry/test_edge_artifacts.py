"""Edge tests for files: uploads in parts, ranges, idle streams and collection, on a registry in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY

from flywheel_common.clock import ManualClock
from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_protos.registry.v1 import artifact_pb2 as pb
from flywheel_protos.registry.v1 import registry_pb2
from flywheel_registry.artifacts.blocks import BLOCK_BYTES
from flywheel_registry.artifacts.parts import PART_BYTES
from flywheel_registry.collection import collection
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.models.variant import Variant
from flywheel_registry.server import Ports, wire
from flywheel_registry.serving.routing import Routing
from tests.support.builders.registry import ModelClient, add_model
from tests.support.eventually import eventually
from tests.support.servers.registry import NO_TICKS, memory_ports, refused, registry_settings, running

HOUR = 3600.0


@pytest.fixture
def ports() -> Ports:
    return memory_ports(MemoryStore())[0]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime.now(UTC))


@pytest.fixture
async def client(ports: Ports, clock: ManualClock) -> AsyncIterator[ModelClient]:
    settings = registry_settings(**NO_TICKS, stream_idle_seconds=0.3)
    async with running(wire(settings, clock, ports)) as stub:
        found = ModelClient(stub)
        await found.create()
        yield found


def objects(ports: Ports) -> MemoryObjectStore:
    return cast("MemoryObjectStore", ports.objects)


async def keys(ports: Ports, prefix: str = "") -> list[str]:
    return [info.key async for info in ports.objects.list(prefix)]


async def send_part(
    client: ModelClient, version: str, number: int, data: bytes, sha256: str | None = None
) -> None:
    def messages() -> Any:
        target = pb.UploadArtifactPartRequest.Target(
            model_version=version,
            artifact="model.onnx",
            number=number,
            sha256=hashlib.sha256(data).hexdigest() if sha256 is None else sha256,
        )
        yield pb.UploadArtifactPartRequest(target=target)
        for start in range(0, len(data), 1 << 20):
            yield pb.UploadArtifactPartRequest(data=data[start : start + (1 << 20)])

    await client.stub.UploadArtifactPart(messages())


async def status(client: ModelClient, version: str) -> pb.ArtifactUpload:
    request = pb.GetArtifactUploadRequest(model_version=version, artifact="model.onnx")
    return (await client.stub.GetArtifactUpload(request)).upload


async def complete(client: ModelClient, version: str) -> Any:
    request = pb.CompleteArtifactUploadRequest(model_version=version, artifact="model.onnx")
    return (await client.stub.CompleteArtifactUpload(request)).model_version


async def download(client: ModelClient, version: str, **range_: int) -> bytes:
    request = registry_pb2.DownloadArtifactRequest(model_version=version, artifact="model.onnx", **range_)
    return b"".join([part.data async for part in client.stub.DownloadArtifact(request)])


def parts_of(content: bytes) -> list[bytes]:
    return [content[start : start + PART_BYTES] for start in range(0, len(content), PART_BYTES)]


async def test_a_broken_upload_goes_on_with_the_missing_parts(client: ModelClient, ports: Ports) -> None:
    content = os.urandom(2 * PART_BYTES + 5)
    version = (await client.version(content, upload=False)).name
    parts = parts_of(content)
    for number in (2, 0):
        await send_part(client, version, number, parts[number])
    found = await status(client, version)
    assert (PART_BYTES, 3, False) == (found.part_bytes, found.part_count, found.stored)
    assert [(n, hashlib.sha256(parts[n]).hexdigest()) for n in (0, 2)] == [
        (p.number, p.sha256) for p in found.parts
    ]
    with refused("FAILED_PRECONDITION", "PARTS_MISSING") as error:
        await complete(client, version)
    assert "1 parts of model.onnx are missing, e.g. 1" in error.message
    await send_part(client, version, 1, parts[1])
    await complete(client, version)
    assert content == await client.download(version)
    assert [] == await keys(ports, "uploads/")
    assert (await status(client, version)).stored
    await complete(client, version)


async def test_a_wrong_part_is_not_stored_and_can_be_replaced(client: ModelClient) -> None:
    content = os.urandom(PART_BYTES + 1)
    version = (await client.version(content, upload=False)).name
    first, last = parts_of(content)
    with refused("DATA_LOSS", "DIGEST_MISMATCH"):
        await send_part(client, version, 0, first, sha256="ab" * 32)
    for number, digest in ((2, None), (0, "AB" * 32), (0, "../x")):
        with refused("INVALID_ARGUMENT", "INVALID_PART"):
            await send_part(client, version, number, first, sha256=digest)
    assert [] == list((await status(client, version)).parts)
    # Bytes that belong to another file, with their own digest: only the whole file shows it.
    other = bytes(PART_BYTES)
    await send_part(client, version, 0, other)
    await send_part(client, version, 1, last)
    with refused("DATA_LOSS", "DIGEST_MISMATCH"):
        await complete(client, version)
    await send_part(client, version, 0, first)
    await complete(client, version)
    assert content == await client.download(version)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 1), (1, 0), (BLOCK_BYTES - 1, 2), (BLOCK_BYTES, BLOCK_BYTES), (5, 2 * BLOCK_BYTES), (2_500_000, 0)],
)
async def test_a_range_is_read(client: ModelClient, offset: int, length: int) -> None:
    content = os.urandom(2_500_001)
    version = (await client.version(content)).name
    wanted = content[offset : offset + length] if length else content[offset:]
    assert wanted == await download(client, version, offset=offset, length=length)


async def test_a_range_outside_of_the_file_is_refused(client: ModelClient) -> None:
    version = (await client.version(b"12345")).name
    for offset, length in ((6, 0), (0, 6), (4, 2), (1 << 63, 1)):
        with refused("INVALID_ARGUMENT", "INVALID_RANGE"):
            await download(client, version, offset=offset, length=length)


async def test_a_range_with_a_wrong_byte_is_not_sent(client: ModelClient, ports: Ports) -> None:
    content = os.urandom(3 * BLOCK_BYTES)
    version = (await client.version(content)).name
    (key,) = await keys(ports)
    broken = bytearray(content)
    broken[BLOCK_BYTES + 7] ^= 1
    await objects(ports).put(key, bytes(broken))
    assert content[:BLOCK_BYTES] == await download(client, version, length=BLOCK_BYTES)
    assert content[2 * BLOCK_BYTES :] == await download(client, version, offset=2 * BLOCK_BYTES)
    with refused("DATA_LOSS", "DIGEST_MISMATCH"):
        await download(client, version, offset=BLOCK_BYTES, length=1)
    await objects(ports).put(key, content[:100])
    with refused("DATA_LOSS", "DIGEST_MISMATCH"):
        await download(client, version, offset=200, length=1)


async def test_blocks_of_an_older_file_are_digested_once(client: ModelClient, ports: Ports) -> None:
    content = os.urandom(BLOCK_BYTES + 9)
    version = (await client.version(content)).name
    digest = hashlib.sha256(content).hexdigest()
    async with ports.store.transaction() as records:
        await records.forget_digest(digest)
    assert content[5:7] == await download(client, version, offset=5, length=2)
    expected = b"".join(
        hashlib.sha256(content[start : start + BLOCK_BYTES]).digest() for start in (0, BLOCK_BYTES)
    )
    async with ports.store.reading() as records:
        assert expected == await records.block_digests(digest)


async def test_an_upload_without_data_ends(client: ModelClient) -> None:
    version = (await client.version(b"12345", upload=False)).name
    target = registry_pb2.UploadArtifactRequest.Target(model_version=version, artifact="model.onnx")
    call = client.stub.UploadArtifact()
    await call.write(registry_pb2.UploadArtifactRequest(target=target))
    with refused("DEADLINE_EXCEEDED", "STREAM_IDLE"):
        await call


async def test_a_download_that_nobody_reads_ends(client: ModelClient) -> None:
    version = (await client.version(bytes(30_000_000))).name
    request = registry_pb2.DownloadArtifactRequest(model_version=version, artifact="model.onnx")
    call = client.stub.DownloadArtifact(request)
    before = cancelled("DownloadArtifact")
    assert (await call.read()).data
    await eventually(lambda: before + 1 == cancelled("DownloadArtifact"))
    call.cancel()


async def test_a_gateway_that_reads_no_state_is_cut_off(client: ModelClient, ports: Ports) -> None:
    name = f"projects/{'p' * 60}/models/m"
    await add_model(ports.store, name)
    shares = tuple(Variant(f"variant-{share:050d}", 1, 0.01) for share in range(8_000))
    before = cancelled("WatchServing")
    call = client.stub.WatchServing(registry_pb2.WatchServingRequest(gateway_id="g"))

    async def cut_off_after_a_change() -> bool:
        async with ports.store.transaction() as records:
            generation = (await records.routing(name)).generation
            await records.set_routing(name, Routing(generation + 1, champion=1, variants=shares))
        return before + 1 == cancelled("WatchServing")

    await eventually(cut_off_after_a_change, every=0.1)
    call.cancel()


def cancelled(method: str) -> float:
    labels = {"method": f"/flywheel.registry.v1.RegistryService/{method}", "code": "CANCELLED"}
    return REGISTRY.get_sample_value("flywheel_rpc_handled_total", labels) or 0.0


async def collect(client: ModelClient, **fields: Any) -> tuple[int, int, int, int]:
    """Run a whole collection; return (examined, collected, bytes, purged)."""
    request, totals = pb.CollectArtifactsRequest(**fields), [0, 0, 0, 0]
    while True:
        done = await client.stub.CollectArtifacts(request)
        found = (done.examined_count, done.collected_count, done.collected_bytes, done.purged_version_count)
        totals = [a + b for a, b in zip(totals, found, strict=True)]
        request.page_token = done.next_page_token
        if not done.next_page_token:
            return totals[0], totals[1], totals[2], totals[3]


async def test_what_a_deleted_version_held_is_collected_after_the_grace_period(
    client: ModelClient, ports: Ports, clock: ManualClock
) -> None:
    kept, shared, lone = b"kept", b"shared", b"lone"
    for content in (kept, shared):
        await client.version(content)
    for content in (shared, lone):
        version = (await client.version(content)).name
        await client.stub.DeleteModelVersion(registry_pb2.DeleteModelVersionRequest(name=version))
    pending = await client.version(b"pending", upload=False)
    await send_part(client, pending.name, 0, b"pending")
    before = await keys(ports)
    assert (4, 0, 0, 0) == await collect(client)
    clock.advance(8 * 24 * HOUR)
    assert (4, 1, 7, 2) == await collect(client, dry_run=True)
    assert before == await keys(ports)
    assert (4, 2, 11, 2) == await collect(client)
    left = {key.rpartition("/")[2] for key in await keys(ports)}
    assert {hashlib.sha256(content).hexdigest() for content in (kept, shared)} == left
    assert (2, 0, 0, 0) == await collect(client)
    with refused("NOT_FOUND", "NOT_RESTORABLE"):
        await client.stub.RestoreModelVersion(
            pb.RestoreModelVersionRequest(name=f"{client.model}/versions/4")
        )


async def test_a_deleted_version_is_restored_with_its_bytes(client: ModelClient, clock: ManualClock) -> None:
    version = (await client.version(b"12345")).name
    await client.stub.DeleteModelVersion(registry_pb2.DeleteModelVersionRequest(name=version))
    clock.advance(2 * HOUR)
    assert (1, 0, 0, 0) == await collect(client)
    await client.stub.RestoreModelVersion(pb.RestoreModelVersionRequest(name=version))
    assert b"12345" == await client.download(version)


async def test_a_collection_in_steps_looks_at_every_object_once(
    client: ModelClient, ports: Ports, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "STEP_SECONDS", -1.0)
    for i in range(300):
        digest = hashlib.sha256(bytes([i % 256, i // 256])).hexdigest()
        await objects(ports).put(f"sha256/{digest[:2]}/{digest[2:4]}/{digest}", b"x")
    clock.advance(2 * HOUR)
    await client.version(b"12345")
    assert (301, 300, 300, 0) == await collect(client, grace={"seconds": 3600})
    assert 1 == len(await keys(ports))


async def test_a_short_grace_period_is_refused(client: ModelClient) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_GRACE"):
        await client.stub.CollectArtifacts(pb.CollectArtifactsRequest(grace={"seconds": -(1 << 62)}))
    assert (0, 0, 0, 0) == await collect(client, grace={"seconds": 1 << 62})
    with refused("INVALID_ARGUMENT", "INVALID_GRACE"):
        await client.stub.CollectArtifacts(pb.CollectArtifactsRequest(grace={"seconds": 3599}))
    with refused("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN"):
        await client.stub.CollectArtifacts(pb.CollectArtifactsRequest(page_token="x"))
