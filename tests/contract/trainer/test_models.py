"""Contract tests for the models and evaluations of the registry: in memory, and over gRPC."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest

from flywheel_common.errors import InvalidArgument, NotFound, Unavailable
from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_job.artifacts import artifact_key
from flywheel_job.model_file import InputTensor, ModelFile
from flywheel_job.signature import Input
from flywheel_protos.registry.v1 import model_pb2, registry_pb2_grpc
from flywheel_protos.types.v1 import value_pb2
from flywheel_trainer.fakes.models import MemoryEvaluations, MemoryModels
from flywheel_trainer.jobs.errors import (
    DigestMismatch,
    NoModelFile,
    UnknownModelVersion,
    UnsupportedSignature,
)
from flywheel_trainer.jobs.models import Evaluations, FoundModel, RegistryModels
from flywheel_trainer.store.grpc.models import RegisteredModels
from flywheel_trainer.store.grpc.registry import GrpcRegistry
from tests.support.peers.trainer import FEATURE_SET, MODEL, TRAINING_SET, RegistryServer, serve

GRAPH = bytes(range(256)) * 100
DIGEST = hashlib.sha256(GRAPH).hexdigest()
VERSION = f"{MODEL}/versions/1"
SIGNATURE = model_pb2.Signature(
    inputs=[
        model_pb2.SignatureInput(name="v__x", data_type=value_pb2.DATA_TYPE_FLOAT64),
        model_pb2.SignatureInput(name="v__c", data_type=value_pb2.DATA_TYPE_STRING, vocabulary=["AA", "BB"]),
    ]
)
FILE = ModelFile(
    VERSION,
    f"s3://b/{artifact_key(DIGEST)}",
    DIGEST,
    (InputTensor("INPUT", "FLOAT32", (Input("v__x", "FLOAT64"), Input("v__c", "STRING", ("AA", "BB")))),),
    "SCORE",
    "BINARY",
)
REPORT = {"calibration": {"slope": 1.5, "intercept": -0.5}, "threshold": 0.4}
CALIBRATED = replace(FILE, calibration={"platt": REPORT["calibration"]}, threshold=0.4)


@dataclass
class World:
    """A registry with one version, which has a report."""

    models: RegistryModels
    evaluations: Evaluations
    promote: Callable[[], None]
    """Lets production serve the version, with another calibration and threshold than its report."""
    shut_down: Callable[[], Awaitable[None]]


def memory_world() -> World:
    models = MemoryModels()
    models.known[VERSION] = FoundModel(CALIBRATED, TRAINING_SET)

    def promote() -> None:
        served = replace(FILE, calibration={"isotonic": {"x": [0.0, 1.0], "y": [0.1, 0.9]}}, threshold=0.3)
        models.serving[MODEL] = FoundModel(served, TRAINING_SET)

    async def shut_down() -> None:
        models.down = True

    return World(models, MemoryEvaluations(models), promote, shut_down)


def promoted(server: RegistryServer, calibration: model_pb2.Calibration) -> None:
    name = f"{MODEL}/releases/1"
    server.releases[name] = model_pb2.Release(
        name=name, model_version=VERSION, calibration=calibration, threshold=0.3
    )
    server.production = name


@dataclass
class Served:
    """`RegistryModels` over gRPC, its stand-in registry and its bucket."""

    peer: GrpcRegistry
    models: RegisteredModels
    server: RegistryServer
    objects: MemoryObjectStore
    shut_down: Callable[[], Awaitable[None]]


async def serve_registry(stack: AsyncExitStack) -> Served:
    server, objects = RegistryServer(), MemoryObjectStore()
    channel, stop = await serve(stack, registry_pb2_grpc.add_RegistryServiceServicer_to_server, server)
    peer = GrpcRegistry(channel)
    return Served(peer, RegisteredModels(peer, objects, "b"), server, objects, stop)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with AsyncExitStack() as stack:
        yield await serve_registry(stack)


def add_version(server: RegistryServer, report: Any = None, **fields: Any) -> str:
    files = {"model.onnx": GRAPH} | ({} if report is None else {"report.json": json.dumps(report).encode()})
    values: dict[str, Any] = {"signature": SIGNATURE, "training_dataset": TRAINING_SET, **fields}
    return server.add_version(files, feature_set=FEATURE_SET, **values)


@pytest.fixture(params=["memory", "grpc"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield memory_world()
            return
        served = await serve_registry(stack)
        add_version(served.server, REPORT)
        isotonic = model_pb2.Calibration.Isotonic(x=[0.0, 1.0], y=[0.1, 0.9])
        calibration = model_pb2.Calibration(isotonic=isotonic)

        def promote() -> None:
            promoted(served.server, calibration)

        yield World(served.models, served.peer, promote, served.shut_down)


async def test_a_version_has_the_calibration_of_its_report(world: World) -> None:
    assert await world.models.version(VERSION) == FoundModel(CALIBRATED, TRAINING_SET)
    with pytest.raises(UnknownModelVersion):
        await world.models.version(f"{MODEL}/versions/9")


async def test_a_champion_has_the_calibration_of_its_release(world: World) -> None:
    assert await world.models.champion(MODEL) is None
    world.promote()
    champion = await world.models.champion(MODEL)
    assert champion is not None
    assert champion.file.calibration == {"isotonic": {"x": [0.0, 1.0], "y": [0.1, 0.9]}}
    assert (champion.file.name, champion.file.threshold) == (VERSION, 0.3)


async def test_an_evaluation_is_recorded_once_for_a_request_id(world: World) -> None:
    first = await world.evaluations.record(VERSION, {"auc": 0.8}, "", ["passed: measured"], "r")
    assert await world.evaluations.record(VERSION, {"auc": 0.8}, "", ["passed: measured"], "r") == first
    second = await world.evaluations.record(VERSION, {"auc": 0.8}, "", ["passed: measured"], "other")
    assert second != first
    with pytest.raises(InvalidArgument, match="another request body"):
        await world.evaluations.record(VERSION, {"auc": 0.9}, "", ["passed: measured"], "r")
    with pytest.raises(NotFound):
        await world.evaluations.record(f"{MODEL}/versions/9", {"auc": 0.8}, "", [], "third")


async def test_without_the_registry_nothing_is_answered(world: World) -> None:
    await world.shut_down()
    for call in (
        world.models.version(VERSION),
        world.models.champion(MODEL),
        world.evaluations.record(VERSION, {"auc": 0.8}, "", [], "r"),
    ):
        with pytest.raises(Unavailable):
            await call


async def test_the_graph_is_downloaded_once(served: Served) -> None:
    add_version(served.server)
    assert (await served.models.version(VERSION)).file == FILE
    assert await served.objects.get(artifact_key(DIGEST)) == GRAPH
    served.server.files.clear()
    assert (await served.models.version(VERSION)).file == FILE


async def test_tensors_outputs_and_calibrations_are_converted(served: Served) -> None:
    signature = model_pb2.Signature(
        inputs=[
            model_pb2.SignatureInput(name="v__x", data_type=value_pb2.DATA_TYPE_FLOAT64, tensor="A"),
            model_pb2.SignatureInput(name="v__n", data_type=value_pb2.DATA_TYPE_INT64, tensor="N"),
        ],
        tensors=[
            model_pb2.SignatureTensor(name="A", data_type=value_pb2.DATA_TYPE_FLOAT64, shape=[1]),
            model_pb2.SignatureTensor(name="N", data_type=value_pb2.DATA_TYPE_INT64),
        ],
        output=model_pb2.SignatureOutput(
            tensor="P", multiclass=model_pb2.MulticlassOutput(class_names=["low", "high"])
        ),
    )
    add_version(served.server, signature=signature)
    temperature = model_pb2.Calibration.Temperature(temperature=2.0)
    promoted(served.server, model_pb2.Calibration(temperature=temperature))
    found = await served.models.champion(MODEL)
    assert found is not None
    assert found.file == replace(
        FILE,
        tensors=(
            InputTensor("A", "FLOAT64", (Input("v__x", "FLOAT64"),)),
            InputTensor("N", "INT64", (Input("v__n", "INT64"),), flat=True),
        ),
        output="P",
        kind="MULTICLASS",
        classes=("low", "high"),
        calibration={"temperature": {"temperature": 2.0}},
    )


VECTOR = model_pb2.Signature(
    inputs=SIGNATURE.inputs,
    output=model_pb2.SignatureOutput(vector=model_pb2.VectorOutput(size=4)),
)
VECTOR_INPUT = model_pb2.Signature(
    inputs=[
        model_pb2.SignatureInput(name="v__e", data_type=value_pb2.DATA_TYPE_FLOAT32_VECTOR, vector_size=4)
    ]
)


@pytest.mark.parametrize("signature", [VECTOR, VECTOR_INPUT], ids=["output", "input"])
async def test_vectors_are_refused(served: Served, signature: model_pb2.Signature) -> None:
    add_version(served.server, signature=signature)
    with pytest.raises(UnsupportedSignature):
        await served.models.version(VERSION)


@pytest.mark.parametrize(
    "report",
    [[1], {"calibration": {"spline": {}}}, {"calibration": {"slope": "steep"}}, {"threshold": "high"}],
)
async def test_a_report_without_a_readable_calibration_is_refused(served: Served, report: Any) -> None:
    add_version(served.server, report)
    with pytest.raises(NoModelFile):
        await served.models.version(VERSION)


async def test_versions_whose_graph_is_missing_or_changed_are_refused(served: Served) -> None:
    served.server.add_version({"weights.pt": b"w"}, signature=SIGNATURE)
    with pytest.raises(NoModelFile):
        await served.models.version(VERSION)
    stored, changed = add_version(served.server), add_version(served.server)
    del served.server.files[stored, "model.onnx"]
    served.server.files[changed, "model.onnx"] = GRAPH + b"x"
    with pytest.raises(NoModelFile):
        await served.models.version(stored)
    with pytest.raises(DigestMismatch):
        await served.models.version(changed)
