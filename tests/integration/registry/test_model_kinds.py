"""Models of every kind are registered by the SDK, checked by the registry and released."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from onnx import TensorProto, helper
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from flywheel.cli.main import app
from flywheel.client import Client
from flywheel.errors import InvalidModelError
from flywheel.onnx_signature import SignatureError
from flywheel_common.signature import InputSpec, OutputKind, OutputSpec, Signature, TensorSpec
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_protos.types.v1 import value_pb2
from tests.support.builders.onnx_models import graph_file
from tests.support.peers.registry import FakeFeatures, serving_features
from tests.support.servers.registry import refused, running_registry

IRIS = "projects/default/featureSets/iris/versions/1"
FLOAT = TensorProto.FLOAT
READY = model_pb2.ARTIFACT_STATE_READY


@pytest_asyncio.fixture
async def features() -> AsyncIterator[FakeFeatures]:
    async with serving_features() as fake:
        fake.sets[IRIS] = [
            value_pb2.Field(name=f"iris__f{n}", data_type="DATA_TYPE_FLOAT64") for n in range(4)
        ]
        yield fake


@pytest_asyncio.fixture
async def client(settings: Callable[..., Any], features: FakeFeatures) -> AsyncIterator[Client]:
    """An SDK client of a registry and a feature service."""
    async with (
        running_registry(settings(feature_address=features.address)) as stub,
        Client(registry=stub.address, feature=features.address) as opened,
    ):
        yield opened


async def released(client: Client, version: model_pb2.ModelVersion, **fields: Any) -> model_pb2.Release:
    """Promote a version to STAGING, release it and read the release."""
    promoted = await client.registry.PromoteModelVersion(
        registry_pb2.PromoteModelVersionRequest(name=version.name)
    )
    assert promoted.passed
    request = registry_pb2.CreateReleaseRequest(
        parent=version.name.partition("/versions/")[0],
        release=model_pb2.Release(model_version=version.name, **fields),
    )
    made = (await client.registry.CreateRelease(request)).release
    read = await client.registry.GetRelease(registry_pb2.GetReleaseRequest(name=made.name))
    assert made == read.release
    return made


def iris_classifier() -> tuple[bytes, LogisticRegression]:
    """A scikit-learn classifier of three classes, and its weights as an ONNX graph."""
    data, target = load_iris(return_X_y=True)
    fitted = LogisticRegression(max_iter=500).fit(data, target)
    weights = fitted.coef_.T.astype(np.float32)
    file = graph_file(
        [
            helper.make_node("Gemm", ["X", "W", "b"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["P"], axis=1),
        ],
        [("X", FLOAT, ["rows", 4])],
        [("P", FLOAT, ["rows", 3])],
        [
            helper.make_tensor("W", FLOAT, weights.shape, weights.ravel()),
            helper.make_tensor("b", FLOAT, [3], fitted.intercept_.astype(np.float32)),
        ],
    )
    return file, fitted


async def test_a_three_class_model_is_checked_and_released(client: Client, tmp_path: Path) -> None:
    content, fitted = iris_classifier()
    file = tmp_path / "iris.onnx"
    file.write_bytes(content)
    rows = load_iris().data[::10].astype(np.float32)
    names = ["setosa", "versicolor", "virginica"]
    version = await client.register(
        "iris", file, feature_set=IRIS, kind="multiclass", class_names=names, samples=rows
    )
    assert (READY, []) == (version.artifact_state, list(version.check_problems))
    assert names == list(version.signature.output.multiclass.class_names)
    golden = np.frombuffer(version.golden_rows.output.data, "<f4").reshape(-1, 3)
    np.testing.assert_allclose(golden, fitted.predict_proba(rows.astype(np.float64)), atol=1e-5)
    release = await released(
        client,
        version,
        calibration=model_pb2.Calibration(temperature={"temperature": 1.5}),
        threshold=0.6,
        segment_keys=["garden"],
        segment_thresholds={"garden=north": 0.7},
        fallback=model_pb2.Fallback(default_values=[0.2, 0.3, 0.5]),
    )
    assert ({"garden=north": 0.7}, 1.5) == (
        dict(release.segment_thresholds),
        release.calibration.temperature.temperature,
    )
    for wrong, reason in (
        ({"calibration": model_pb2.Calibration(platt={"slope": 1})}, "INVALID_CALIBRATION"),
        ({"fallback": model_pb2.Fallback(default_values=[0.5, 0.5])}, "INVALID_FALLBACK"),
        ({"fallback": model_pb2.Fallback(default_score=0.5)}, "INVALID_FALLBACK"),
        ({"segment_thresholds": {"garden=north": 0.5}}, "INVALID_THRESHOLD"),
    ):
        request = registry_pb2.CreateReleaseRequest(
            parent="projects/default/models/iris",
            release=model_pb2.Release(model_version=version.name, **wrong),
        )
        with refused("INVALID_ARGUMENT", reason):
            await client.registry._stub.CreateRelease(request)


async def test_a_regression_from_torch_is_checked_and_released(client: Client, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)).eval()
    file, rows = tmp_path / "delay.onnx", np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        torch.onnx.export(
            network,
            (torch.zeros(2, 4),),
            str(file),
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=["X"],
            output_names=["minutes"],
            dynamic_shapes=({0: torch.export.Dim("rows", min=1, max=1 << 20)},),
        )
    version = await client.register(
        "delay", file, feature_set=IRIS, kind="regression", unit="minutes", samples={"X": rows}
    )
    assert READY == version.artifact_state
    golden = np.frombuffer(version.golden_rows.output.data, "<f4")
    np.testing.assert_allclose(golden, network(torch.from_numpy(rows)).detach().numpy()[:, 0], atol=1e-5)
    release = await released(client, version, fallback=model_pb2.Fallback(default_score=35.5))
    assert 35.5 == release.fallback.default_score


async def test_an_embedding_with_several_inputs_is_checked_and_released(
    client: Client, features: FakeFeatures, tmp_path: Path
) -> None:
    name = "projects/default/featureSets/text/versions/1"
    features.sets[name] = [
        value_pb2.Field(name="doc__length", data_type="DATA_TYPE_INT64"),
        value_pb2.Field(name="doc__words", data_type="DATA_TYPE_FLOAT32_VECTOR", vector_size=3),
    ]
    file = tmp_path / "embedding.onnx"
    nodes = [
        helper.make_node("Cast", ["doc__length"], ["length"], to=FLOAT),
        helper.make_node("Unsqueeze", ["length", "last"], ["column"]),
        helper.make_node("Concat", ["doc__words", "column"], ["E"], axis=1),
    ]
    inputs = [("doc__length", TensorProto.INT64, ["rows"]), ("doc__words", FLOAT, ["rows", 3])]
    last = helper.make_tensor("last", TensorProto.INT64, [1], [1])
    file.write_bytes(graph_file(nodes, inputs, [("E", FLOAT, ["rows", 4])], [last]))
    version = await client.register("embedding", file, feature_set=name, kind="vector", size=4)
    assert READY == version.artifact_state
    assert 16 == version.golden_rows.row_count
    assert [1.0, 2.0, 3.0, 4.0] == list(
        (
            await released(client, version, fallback=model_pb2.Fallback(default_values=[1, 2, 3, 4]))
        ).fallback.default_values
    )


async def test_wrong_inputs_are_refused_before_anything_is_stored(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "wide.onnx"
    file.write_bytes(
        graph_file(
            [helper.make_node("Identity", ["X"], ["SCORE"])],
            [("X", FLOAT, ["rows", 7])],
            [("SCORE", FLOAT, ["rows", 7])],
        )
    )
    with pytest.raises(SignatureError) as caught:
        await client.register("wide", file, feature_set=IRIS)
    assert [
        "Input X of type FLOAT32 has [7] elements per row, its features have 4",
        "Output SCORE has [7] values per row, a BINARY output 1 or 2.",
    ] == [difference.partition(":")[0] for difference in caught.value.differences]
    with refused("NOT_FOUND", "UNKNOWN_MODEL"):
        await client.registry._stub.GetModel(
            registry_pb2.GetModelRequest(name="projects/default/models/wide")
        )


async def test_the_registry_lists_what_differs_from_an_explicit_signature(
    client: Client, tmp_path: Path
) -> None:
    content, _ = iris_classifier()
    file = tmp_path / "iris.onnx"
    file.write_bytes(content)
    signature = Signature(
        inputs=(
            *(InputSpec(f"iris__f{n}", 3, (), "X") for n in range(3)),
            InputSpec("iris__x", 4, (), "X"),
        ),
        tensors=(TensorSpec("X", 3, (4,)),),
        output=OutputSpec(OutputKind.MULTICLASS, "P", class_names=("a", "b", "c")),
    )
    with pytest.raises(InvalidModelError) as caught:
        await client.register("iris", file, feature_set=IRIS, signature=signature)
    assert 4 == len(caught.value.problems)
    assert f"Feature set {IRIS} has no feature iris__x." == caught.value.problems[3]


async def test_the_command_registers_a_file_with_its_own_signature(
    client: Client, features: FakeFeatures, tmp_path: Path
) -> None:
    content, _ = iris_classifier()
    file = tmp_path / "iris.onnx"
    file.write_bytes(content)
    stub = client.registry._stub
    env = {
        "FLYWHEEL_REGISTRY_ADDRESS": client._addresses["registry"],
        "FLYWHEEL_FEATURE_ADDRESS": features.address,
    }

    def run(*options: str) -> Any:
        command = ["--json", "models", "register", str(file), "--feature-set", IRIS, "--signature", "auto"]
        return CliRunner().invoke(app, [*command, *options], env=env)

    classes = [part for name in ("setosa", "versicolor", "virginica") for part in ("--class-name", name)]
    registered = await asyncio.to_thread(run, "--kind", "multiclass", *classes)
    assert registered.exit_code == 0, registered.output
    model = "projects/default/models/iris"
    request = registry_pb2.GetModelVersionRequest(name=f"{model}/versions/1")
    version = (await stub.GetModelVersion(request)).model_version
    assert (READY, 16) == (version.artifact_state, version.golden_rows.row_count)
    checked = await asyncio.to_thread(
        CliRunner().invoke, app, ["--json", "models", "check", version.name], env=env
    )
    assert (checked.exit_code, '"ARTIFACT_STATE_READY"' in checked.output) == (0, True)
    wrong_kind = await asyncio.to_thread(run, "--kind", "regression")
    assert wrong_kind.exit_code == 1
    assert "Output P has [3] values per row, a REGRESSION output 1." in wrong_kind.output
    with refused("NOT_FOUND", "UNKNOWN_MODEL_VERSION"):
        await stub.GetModelVersion(registry_pb2.GetModelVersionRequest(name=f"{model}/versions/2"))
    deleted = await asyncio.to_thread(CliRunner().invoke, app, ["models", "delete", version.name], env=env)
    assert deleted.exit_code == 0
    with refused("NOT_FOUND", "UNKNOWN_MODEL_VERSION"):
        await stub.GetModelVersion(request)
