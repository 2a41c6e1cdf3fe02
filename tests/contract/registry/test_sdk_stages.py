"""Stages and releases by the SDK and the CLI, on a registry in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import flywheel as fw
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.registry.v1 import registry_pb2 as pb
from tests.support.builders.registry import ModelClient
from tests.support.commands import flywheel


@pytest.fixture
async def sdk(client: ModelClient) -> AsyncIterator[fw.Client]:
    async with fw.Client(registry=client.stub.address) as opened:
        yield opened


async def cli(client: ModelClient, *command: str) -> Any:
    """Run `flywheel models` against the registry."""
    return await flywheel("models", *command, registry=client.stub.address)


async def test_a_version_is_promoted_and_released_by_the_cli(client: ModelClient) -> None:
    await client.create()
    await client.version()
    promoted = await cli(client, "promote", "late/1")
    assert (0, True) == (promoted.exit_code, "is in stage STAGING" in promoted.output), promoted.output
    released = await cli(
        client,
        "release",
        "late/1",
        "--threshold",
        "0.25",
        "--default-score",
        "0.1",
        "--segment-key",
        "origin",
    )
    assert 0 == released.exit_code, released.output
    assert "STAGING" == await client.stage(f"{client.model}/versions/1")
    served = await cli(client, "promote", "late/1", "--to", "PRODUCTION", "--override", "--reason", "first")
    assert "is in stage PRODUCTION" in served.output, served.output


async def test_a_failed_gate_names_the_rules_and_fails_the_command(client: ModelClient) -> None:
    rule = model_pb2.MetricThreshold(metric="auc", min=0.9)
    await client.create(gate_policy=model_pb2.GatePolicy(offline=[rule]))
    await client.version()
    refused = await cli(client, "promote", "late/1")
    assert 1 == refused.exit_code
    assert "auc: 0.75, must be at least 0.9" in refused.output
    assert "NONE" == await client.stage(f"{client.model}/versions/1")
    overridden = await cli(client, "promote", "late/1", "--override", "--reason", "incident 7")
    assert (0, "STAGING") == (overridden.exit_code, await client.stage(f"{client.model}/versions/1"))


async def test_a_version_is_rejected_with_a_reason(client: ModelClient, sdk: fw.Client) -> None:
    await client.create()
    await client.version()
    assert 2 == (await cli(client, "reject", "late/1")).exit_code
    rejected = await sdk.reject("late/1", "leaks the label")
    assert model_pb2.STAGE_REJECTED == rejected.stage


SERVING = {
    "cached_max_age": "3600s",
    "feature_policies": [
        {"feature": "view__a", "missing": "FEATURE_ACTION_FAIL", "stale": "FEATURE_ACTION_ALLOW"}
    ],
    "serving_policy": {
        "placement": {"max_batch_rows": 64},
        "cost_mode": {"real_time": [{"field": "miles", "min": 100.0}]},
        "cost": {"unit": "EUR", "per_answer": 0.25},
    },
}


async def test_a_release_is_created_with_a_serving_policy_file(client: ModelClient, tmp_path: Path) -> None:
    await client.create()
    await client.version()
    file = tmp_path / "serving.json"
    file.write_text(json.dumps(SERVING))
    command = ["release", "late/1", "--threshold", "0.25", "--default-score", "0.1", "--serving-policy"]
    released = await cli(client, *command, str(file))
    assert 0 == released.exit_code, released.output
    release = (await client.stub.GetRelease(pb.GetReleaseRequest(name=f"{client.model}/releases/1"))).release
    assert (0.25, 0.1, 3600) == (
        release.threshold,
        release.fallback.default_score,
        release.fallback.cached_max_age.seconds,
    )
    (policy,) = release.feature_policies
    assert ("view__a", model_pb2.FEATURE_ACTION_FAIL, model_pb2.FEATURE_ACTION_ALLOW) == (
        policy.feature,
        policy.missing,
        policy.stale,
    )
    serving = release.serving_policy
    assert (64, "EUR", 0.25) == (serving.placement.max_batch_rows, serving.cost.unit, serving.cost.per_answer)
    assert [("miles", 100.0)] == [(rule.field, rule.min) for rule in serving.cost_mode.real_time]


async def test_a_serving_policy_file_with_an_unknown_field_is_refused(
    client: ModelClient, tmp_path: Path
) -> None:
    file = tmp_path / "serving.json"
    file.write_text(json.dumps({"cost_modes": {}}))
    refused = await cli(client, "release", "late/1", "--serving-policy", str(file))
    assert 1 == refused.exit_code
    assert "unknown field cost_modes" in refused.output


async def test_the_sdk_creates_a_release_with_a_cost_mode(client: ModelClient, sdk: fw.Client) -> None:
    await client.create()
    await client.version()
    serving = fw.ReleaseServing(
        serving_policy=model_pb2.ServingPolicy(cost_mode={}), cached_max_age=timedelta(hours=1)
    )
    release = await sdk.release("late/1", threshold=0.75, serving=serving)
    assert (0.75, True) == (release.threshold, release.serving_policy.HasField("cost_mode"))
    assert not release.feature_policies
