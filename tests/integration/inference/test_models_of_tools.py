"""The model files of docs/guides/models.md, registered as written there, answer from Triton."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flywheel_protos.registry.v1 import model_pb2
from tests.support.builders.inference import FEATURE_SET, MODEL
from tests.support.models_guide import TOOLS, guide_client, programs, run
from tests.support.servers.inference import Deployment

NAMES = ("hist__delay", "trip__miles")
"""Numeric features of the feature service stand-in."""
ROWS = [("UA", 0.5), ("DL", -1.25), ("UA", 2.0), ("DL", 3.5)]
"""Carrier and miles of each request."""
DELAYS = {"UA": 2.0, "DL": -1.0}
"""The delays of the feature service stand-in."""


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("tool", TOOLS)
async def test_a_registered_model_of_each_tool_is_served(
    deployment: Deployment, tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(5).normal(size=(200, 2)).astype(np.float32)
    monkeypatch.chdir(tmp_path)
    async with guide_client(NAMES) as (client, _):
        names: dict[str, Any] = {
            "client": client,
            "rows": rows,
            "labels": (rows.sum(axis=1) > 0).astype(int),
        }
        await run(programs()[tool], names)
        version = names["version"]
        assert model_pb2.ARTIFACT_STATE_READY == version.artifact_state
        await client.download_artifact(version.name, "model.onnx", tmp_path / "stored.onnx")
    version.name, version.feature_set = f"{MODEL}/versions/1", FEATURE_SET
    deployment.registry.artifacts[version.name, "model.onnx"] = (tmp_path / "stored.onnx").read_bytes()
    release = model_pb2.Release(
        name=f"{MODEL}/releases/1", model_version=version.name, feature_set=FEATURE_SET, threshold=0.5
    )
    served = model_pb2.ServingRelease(release=release, model_version=version)
    gateway = await deployment.gateway()
    await gateway.serves(deployment.registry.want(champion=served))
    answers = await asyncio.gather(*(gateway.predict(carrier, miles) for carrier, miles in ROWS))
    x = np.array([[DELAYS[carrier], miles] for carrier, miles in ROWS], np.float32)
    if tool == "torch":
        wanted = names["net"](names["torch"].from_numpy(x)).detach().numpy()[:, 0]
    else:
        wanted = names["model"].predict_proba(x)[:, 1]
    assert not any(answer.degraded for answer in answers)
    np.testing.assert_allclose([answer.score for answer in answers], wanted, atol=1e-5)
    assert [bool(score >= 0.5) for score in wanted] == [answer.decision for answer in answers]
