"""The programs of docs/guides/models.md, as they are written there, on a registry that checks their files."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flywheel as fw
from flywheel.onnx_signature import SignatureError
from flywheel_common.signature import FLOAT64
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.types.v1 import value_pb2
from flywheel_registry.artifacts.graph import Feature
from flywheel_registry.fakes.checks import MemoryFeatureSets
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.server import wire
from flywheel_registry.store.onnxruntime.graphs import OnnxGraphs
from tests.support.builders.registry import ModelClient
from tests.support.peers.registry import FakeFeatures, serving_features
from tests.support.servers.registry import NO_TICKS, memory_ports, registry_settings, running

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "models.md"
TOOLS = ("scikit-learn", "XGBoost", "LightGBM", "torch")
SET = "projects/default/featureSets/flights"
NAMES = ("flights__distance", "flights__hour", "carriers__delay")


def programs() -> dict[str, str]:
    """Heading → the program below it."""
    return dict(re.findall(r"^## (.*?)\n\n```python\n(.*?)```", GUIDE.read_text(), re.MULTILINE | re.DOTALL))


@pytest.fixture
async def features() -> AsyncIterator[FakeFeatures]:
    async with serving_features() as fake:
        fake.sets[SET] = [value_pb2.Field(name=name, data_type="DATA_TYPE_FLOAT64") for name in NAMES]
        yield fake


@pytest.fixture
async def client(features: FakeFeatures) -> AsyncIterator[fw.Client]:
    ports, clock = memory_ports(MemoryStore())
    ports = replace(
        ports,
        graphs=OnnxGraphs(ports.objects, memory_bytes=8 << 30, seconds=60.0),
        features=MemoryFeatureSets(every={name: Feature(FLOAT64) for name in NAMES}),
    )
    async with (
        running(wire(registry_settings(**NO_TICKS), clock, ports)) as stub,
        fw.Client(registry=stub.address, feature=features.address) as opened,
    ):
        yield opened


async def run(program: str, names: dict[str, Any]) -> None:
    """Run a program that may await at its top level."""
    code = compile(program, "guide", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if inspect.isawaitable(result):
        await result


@pytest.mark.timeout(120)
@pytest.mark.parametrize("tool", TOOLS)
async def test_a_model_of_each_tool_is_registered_in_ten_lines(
    client: fw.Client, tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = programs()[tool]
    assert len(ast.parse(program).body) <= 10, "statements, however they are wrapped"
    rows = np.random.default_rng(5).normal(size=(200, 3)).astype(np.float32)
    names: dict[str, Any] = {"client": client, "rows": rows, "labels": (rows.sum(axis=1) > 0).astype(int)}
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        await run(program, names)
    version = names["version"]
    assert (model_pb2.ARTIFACT_STATE_READY, []) == (version.artifact_state, list(version.check_problems))
    assert list(NAMES) == [one.name for one in version.signature.inputs]
    golden = np.frombuffer(version.golden_rows.output.data, "<f4").reshape(16, -1)[:, -1]
    assert ((golden >= 0) & (golden <= 1)).all()
    if "model" in names:
        expected = names["model"].predict_proba(rows[:16])[:, 1]
        np.testing.assert_allclose(golden, expected, atol=1e-5)
    promoted = await client.promote("late/1")
    assert promoted.passed
    await client.release("late/1")


async def test_wrong_inputs_are_refused_with_all_differences(
    client: fw.Client, features: FakeFeatures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features.sets[SET] = [
        value_pb2.Field(name="flights__distance", data_type="DATA_TYPE_FLOAT64"),
        value_pb2.Field(name="flights__carrier", data_type="DATA_TYPE_STRING"),
    ]
    rows = np.random.default_rng(5).normal(size=(50, 3)).astype(np.float32)
    names: dict[str, Any] = {"client": client, "rows": rows, "labels": (rows.sum(axis=1) > 0).astype(int)}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SignatureError) as error:
        await run(programs()["scikit-learn"], names)
    assert error.value.differences
    with pytest.raises(fw.FlywheelError):
        await ModelClient(client.registry).stage("projects/default/models/late/versions/1")
