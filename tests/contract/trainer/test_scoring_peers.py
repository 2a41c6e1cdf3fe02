"""Contract tests of what SCORE jobs need: tables of users, releases and feature sets, in memory and real."""

from __future__ import annotations

import hashlib
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import polars as pl
import pytest
from pydantic import SecretStr

from flywheel_common.config import S3Settings
from flywheel_common.errors import DataLoss, FlywheelError, NotFound, Unavailable
from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_common.storage.s3 import arrow_filesystem, object_store
from flywheel_protos.feature.v1 import feature_pb2_grpc
from flywheel_protos.registry.v1 import model_pb2, registry_pb2_grpc
from flywheel_protos.types.v1 import value_pb2
from flywheel_trainer.fakes.scoring import MemoryFeatureSets, MemoryReleases, MemoryShapes
from flywheel_trainer.jobs.errors import UnknownRelease, UnknownTable, WrongTable
from flywheel_trainer.jobs.scoring_ports import (
    FeatureSets,
    Releases,
    ScoredRelease,
    SetFields,
    StoredFile,
    Tables,
    TableShape,
)
from flywheel_trainer.store.grpc.feature_sets import GrpcFeatureSets
from flywheel_trainer.store.grpc.registry import GrpcRegistry
from flywheel_trainer.store.grpc.releases import RegisteredReleases
from flywheel_trainer.store.s3.table_shapes import ParquetShapes
from tests.support.peers.trainer import FEATURE_SET, MODEL, FeatureServer, RegistryServer, serve
from tests.support.ports import free_port

ROWS = pl.DataFrame({"carrier": ["UA", "DL", "AA"], "miles": [1.5, None, 2.0]})
FILE = b"the model"
RELEASE, VERSION = f"{MODEL}/releases/1", f"{MODEL}/versions/1"


async def put(settings: S3Settings, key: str, content: pl.DataFrame | bytes) -> None:
    if isinstance(content, pl.DataFrame):
        buffer = io.BytesIO()
        content.write_parquet(buffer)
        content = buffer.getvalue()
    async with object_store(settings) as store:
        await store.put(key, content)


@pytest.fixture(params=["memory", "s3"])
async def tables(request: pytest.FixtureRequest) -> tuple[Tables, str]:
    """Tables, and the bucket in which users/tonight/ has ROWS in two files, by day."""
    if request.param == "memory":
        memory = MemoryShapes()
        memory.known["s3://b/users/tonight/"] = TableShape(("carrier", "miles", "day"), 3)
        return memory, "b"
    settings: S3Settings = request.getfixturevalue("s3_settings")
    await put(settings, "users/tonight/day=1/a.parquet", ROWS[:2])
    await put(settings, "users/tonight/day=2/b.parquet", ROWS[2:])
    return ParquetShapes(lambda: arrow_filesystem(settings)), settings.s3_bucket


async def test_the_columns_and_rows_of_a_table_are_read(tables: tuple[Tables, str]) -> None:
    found, bucket = tables
    assert await found.shape(f"s3://{bucket}/users/tonight/") == TableShape(("carrier", "miles", "day"), 3)


async def test_an_absent_table_is_unknown(tables: tuple[Tables, str]) -> None:
    found, bucket = tables
    with pytest.raises(UnknownTable):
        await found.shape(f"s3://{bucket}/users/none/")


async def test_a_file_that_is_no_parquet_is_a_wrong_table(s3_settings: S3Settings) -> None:
    await put(s3_settings, "users/text.parquet", b"carrier\nUA\n")
    tables = ParquetShapes(lambda: arrow_filesystem(s3_settings))
    for uri in (f"s3://{s3_settings.s3_bucket}/users/text.parquet", "no address"):
        with pytest.raises(WrongTable):
            await tables.shape(uri)


async def test_credentials_that_do_not_permit_to_read_are_named(s3_settings: S3Settings) -> None:
    await put(s3_settings, "users/a.parquet", ROWS)
    wrong = s3_settings.model_copy(update={"s3_secret_key": SecretStr("wrong")})
    with pytest.raises(FlywheelError) as caught:
        await ParquetShapes(lambda: arrow_filesystem(wrong)).shape(
            f"s3://{s3_settings.s3_bucket}/users/a.parquet"
        )
    assert caught.value.reason == "S3_REFUSED"


async def test_an_object_store_that_is_away_is_unavailable(s3_settings: S3Settings) -> None:
    away = s3_settings.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{free_port()}"})
    with pytest.raises(Unavailable):
        await ParquetShapes(lambda: arrow_filesystem(away)).shape("s3://b/users/a.parquet")


@dataclass
class Known:
    """The releases with RELEASE and VERSION, and what the registry of the gRPC adapter does."""

    releases: Releases
    shut_down: Callable[[], Awaitable[None]] | None = None
    registry: RegistryServer | None = None
    objects: MemoryObjectStore | None = None


def scored(name: str, threshold: float) -> ScoredRelease:
    version = a_version()
    release = (
        a_release() if name == RELEASE else model_pb2.Release(model_version=VERSION, threshold=threshold)
    )
    message = model_pb2.ServingRelease(release=release, model_version=version)
    message.model_version.ClearField("golden_rows")
    digests = [hashlib.sha256(c).hexdigest() for c in (message.SerializeToString(deterministic=True), FILE)]
    files = [
        StoredFile(name, f"s3://b/artifacts/{d[:2]}/{d}", d)
        for name, d in zip(("release", "model.onnx"), digests, strict=True)
    ]
    return ScoredRelease(name, MODEL, FEATURE_SET, ("v__x",), files[0], (files[1],))


def a_version() -> model_pb2.ModelVersion:
    artifacts = [
        model_pb2.Artifact(name=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in (("model.onnx", FILE), ("report.json", b"{}"))
    ]
    inputs = [model_pb2.SignatureInput(name="v__x", data_type=value_pb2.DATA_TYPE_FLOAT64)]
    return model_pb2.ModelVersion(
        name=VERSION,
        feature_set=FEATURE_SET,
        signature=model_pb2.Signature(inputs=inputs),
        artifacts=artifacts,
        golden_rows=model_pb2.GoldenRows(row_count=1),
    )


def a_release() -> model_pb2.Release:
    return model_pb2.Release(
        name=RELEASE, model_version=VERSION, feature_set=FEATURE_SET, threshold=0.25, segment_keys=["carrier"]
    )


@pytest.fixture(params=["memory", "grpc"])
async def known(request: pytest.FixtureRequest) -> AsyncIterator[Known]:
    if request.param == "memory":
        memory = MemoryReleases()
        memory.known = {RELEASE: scored(RELEASE, 0.25), VERSION: scored(VERSION, 0.5)}
        yield Known(memory)
        return
    registry, objects = RegistryServer(), MemoryObjectStore()
    registry.versions[VERSION], registry.releases[RELEASE] = a_version(), a_release()
    registry.files[VERSION, "model.onnx"] = FILE
    async with AsyncExitStack() as stack:
        channel, shut_down = await serve(
            stack, registry_pb2_grpc.add_RegistryServiceServicer_to_server, registry
        )
        releases = RegisteredReleases(channel, GrpcRegistry(channel), objects, "b")
        yield Known(releases, shut_down, registry, objects)


@pytest.mark.parametrize(("name", "threshold"), [(RELEASE, 0.25), (VERSION, 0.5)])
async def test_a_release_or_version_is_stored_with_its_model(
    known: Known, name: str, threshold: float
) -> None:
    found = await known.releases.of(name)
    assert found == scored(name, threshold)
    if known.objects is not None:
        key = found.files[0].uri.removeprefix("s3://b/")
        assert await known.objects.get(key) == FILE
        content = await known.objects.get(found.message.uri.removeprefix("s3://b/"))
        assert model_pb2.ServingRelease.FromString(content).release.threshold == threshold
    assert await known.releases.of(name) == found


async def test_an_absent_release_is_unknown(known: Known) -> None:
    for name in (f"{MODEL}/releases/2", f"{MODEL}/versions/2"):
        with pytest.raises(UnknownRelease):
            await known.releases.of(name)


@pytest.mark.parametrize("known", ["grpc"], indirect=True)
@pytest.mark.parametrize("lacks", ["model.onnx", "inputs", "feature set"])
async def test_a_version_that_lacks_something_cannot_be_scored_with(known: Known, lacks: str) -> None:
    assert known.registry is not None
    version: Any = known.registry.versions[VERSION]
    if lacks == "model.onnx":
        del version.artifacts[0]
    elif lacks == "inputs":
        version.signature.ClearField("inputs")
    else:
        version.feature_set = ""
    with pytest.raises(FlywheelError, match=lacks) as caught:
        await known.releases.of(VERSION)
    assert caught.value.reason == "UNSCORABLE_RELEASE"


@pytest.mark.parametrize("known", ["grpc"], indirect=True)
async def test_damaged_bytes_and_an_absent_registry_are_told_apart(known: Known) -> None:
    assert known.registry is not None and known.shut_down is not None and known.objects is not None
    known.registry.files[VERSION, "model.onnx"] = b"other bytes"
    with pytest.raises(DataLoss):
        await known.releases.of(RELEASE)
    await known.shut_down()
    with pytest.raises(Unavailable):
        await known.releases.of(RELEASE)


@pytest.fixture(params=["memory", "grpc"])
async def sets(request: pytest.FixtureRequest) -> AsyncIterator[FeatureSets]:
    if request.param == "memory":
        memory = MemoryFeatureSets()
        memory.known[FEATURE_SET] = SetFields(("carrier",), ())
        yield memory
        return
    async with AsyncExitStack() as stack:
        add = feature_pb2_grpc.add_FeatureServiceServicer_to_server
        channel, _ = await serve(stack, add, FeatureServer("s3://b/"))
        yield GrpcFeatureSets(channel)


async def test_keys_and_request_fields_of_a_feature_set_are_read(sets: FeatureSets) -> None:
    assert await sets.fields(FEATURE_SET) == SetFields(("carrier",), ())
    with pytest.raises(NotFound):
        await sets.fields("projects/default/featureSets/none/versions/1")
