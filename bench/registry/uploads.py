"""Uploads against multipart uploads by aiobotocore alone, and the memory of many at once."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Iterator

import flywheel as fw
from bench import measure
from bench.common.deployment import Deployment
from flywheel_common.config import S3Settings
from flywheel_common.storage.s3 import s3_client
from flywheel_protos.registry.v1 import model_pb2, registry_pb2

MIB = 1 << 20
SIZE = 128 * MIB
ROUNDS = 4
AT_ONCE = 32
SMALL = 16 * MIB
CHUNK = MIB
PEER_PART = 8 * MIB


def run(deployment: Deployment, only: str) -> Iterator[measure.Row]:
    """Yield the rows whose names contain `only`."""
    if only in "upload a file of 128 MiB":
        pairs = measure.alternating(
            ROUNDS,
            lambda: asyncio.run(upload(deployment.address)),
            lambda: asyncio.run(_multipart(deployment.s3)),
        )
        target = measure.at_least(0.6)
        against = "aiobotocore multipart"
        yield measure.compared("upload a file of 128 MiB", "MiB/s", against, pairs, target)
    if only in "resident memory with 32 uploads at once":
        peak = asyncio.run(_many(deployment))
        target = measure.at_most(150, of_value=True)
        yield measure.row("resident memory with 32 uploads at once", peak, "MiB", target)


async def _declare(client: fw.Client, content: bytes) -> str:
    try:
        await client.create_model("uploads")
    except fw.FlywheelError as error:
        if error.reason != "MODEL_EXISTS":
            raise
    sha256 = hashlib.sha256(content).hexdigest()
    artifact = model_pb2.Artifact(name="weights.bin", size_bytes=len(content), sha256=sha256)
    # The second file is never sent: the version stays pending, so that no check is measured.
    other = model_pb2.Artifact(name="model.onnx", size_bytes=1, sha256="ab" * 32)
    request = registry_pb2.CreateModelVersionRequest(
        parent=client.path("models", "uploads"),
        model_version=model_pb2.ModelVersion(artifacts=[artifact, other]),
    )
    return str((await client.registry.CreateModelVersion(request)).model_version.name)


async def _send(client: fw.Client, version: str, content: bytes) -> None:
    async def messages() -> AsyncIterator[registry_pb2.UploadArtifactRequest]:
        target = registry_pb2.UploadArtifactRequest.Target(model_version=version, artifact="weights.bin")
        yield registry_pb2.UploadArtifactRequest(target=target)
        for start in range(0, len(content), CHUNK):
            yield registry_pb2.UploadArtifactRequest(data=content[start : start + CHUNK])

    await client.registry.UploadArtifact(messages(), timeout=600.0)


async def upload(address: str) -> float:
    """MiB per second of one upload."""
    content = os.urandom(SIZE)
    async with fw.Client(registry=address) as client:
        version = await _declare(client, content)
        start = time.perf_counter()
        await _send(client, version, content)
        return SIZE / MIB / (time.perf_counter() - start)


async def _multipart(settings: S3Settings) -> float:
    content, key = os.urandom(SIZE), f"direct/{time.time_ns()}"
    where = {"Bucket": settings.s3_bucket, "Key": key}
    async with s3_client(settings) as client:
        start = time.perf_counter()
        upload, parts = (await client.create_multipart_upload(**where))["UploadId"], []
        for number, at in enumerate(range(0, SIZE, PEER_PART), 1):
            body = content[at : at + PEER_PART]
            answer = await client.upload_part(**where, UploadId=upload, PartNumber=number, Body=body)
            parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        await client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
        return SIZE / MIB / (time.perf_counter() - start)


async def _many(deployment: Deployment) -> float:
    """Largest resident memory of the registry's process, in MiB."""
    peak = 0.0
    async with fw.Client(registry=deployment.address) as client:

        async def one() -> None:
            content = os.urandom(SMALL)
            await _send(client, await _declare(client, content), content)

        async def watch() -> None:
            nonlocal peak
            while True:
                peak = max(peak, deployment.resident_mib)
                await asyncio.sleep(0.05)

        watching = asyncio.create_task(watch())
        try:
            await asyncio.gather(*(one() for _ in range(AT_ONCE)))
        finally:
            watching.cancel()
    return peak
