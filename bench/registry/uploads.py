"""Uploads against multipart uploads by aiobotocore alone, and the memory of many at once."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Iterator

import aiohttp
from yarl import URL

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
BARE_AT_ONCE = 4


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


async def declare(client: fw.Client, content: bytes) -> str:
    """A version that waits for this file and for another one; its name."""
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
        version = await declare(client, content)
        start = time.perf_counter()
        await _send(client, version, content)
        return SIZE / MIB / (time.perf_counter() - start)


async def upload_by_sdk(address: str) -> float:
    """MiB per second of one upload by the call that users make, which sends large files in parts."""
    content = os.urandom(SIZE)
    async with fw.Client(registry=address) as client:
        version = await declare(client, content)
        start = time.perf_counter()
        await client.upload_artifact(version, "weights.bin", content)
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


async def bare(settings: S3Settings) -> float:
    """MiB per second of an HTTP client that only sends bytes to URLs signed before, BARE_AT_ONCE parts at a
    time, without digests: no upload into this object store can be faster."""
    content, key = os.urandom(SIZE), f"bare/{time.time_ns()}"
    starts = iter(range(0, SIZE, PEER_PART))
    async with s3_client(settings) as client, aiohttp.ClientSession() as session:
        urls = [
            await client.generate_presigned_url(
                "put_object", Params={"Bucket": settings.s3_bucket, "Key": f"{key}/{at}"}
            )
            for at in range(0, SIZE, PEER_PART)
        ]

        async def send() -> None:
            for at in starts:
                part = content[at : at + PEER_PART]
                async with session.put(URL(urls[at // PEER_PART], encoded=True), data=part) as answer:
                    answer.raise_for_status()

        start = time.perf_counter()
        await asyncio.gather(*(send() for _ in range(BARE_AT_ONCE)))
        return SIZE / MIB / (time.perf_counter() - start)


async def _many(deployment: Deployment) -> float:
    """Largest resident memory of the registry's process, in MiB."""
    peak = 0.0
    async with fw.Client(registry=deployment.address) as client:

        async def one() -> None:
            content = os.urandom(SMALL)
            await _send(client, await declare(client, content), content)

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
