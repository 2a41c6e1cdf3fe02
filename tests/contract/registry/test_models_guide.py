"""The programs of docs/guides/models.md, as they are written there, on a registry that checks their files."""

from __future__ import annotations

import ast
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flywheel as fw
from flywheel.onnx_signature import SignatureError
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.types.v1 import value_pb2
from tests.support.builders.registry import ModelClient
from tests.support.models_guide import SET, TOOLS, guide_client, programs, run
from tests.support.peers.registry import FakeFeatures

NAMES = ("flights__distance", "flights__hour", "carriers__delay")


@pytest.fixture
async def registered() -> AsyncIterator[tuple[fw.Client, FakeFeatures]]:
    async with guide_client(NAMES) as found:
        yield found


@pytest.fixture
def client(registered: tuple[fw.Client, FakeFeatures]) -> fw.Client:
    return registered[0]


@pytest.fixture
def features(registered: tuple[fw.Client, FakeFeatures]) -> FakeFeatures:
    return registered[1]


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
