"""Stages and releases by the SDK and the CLI, on a registry in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

import flywheel as fw
from flywheel_protos.registry.v1 import model_pb2
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


@pytest.mark.parametrize("name", ["late", "late/x", "/1"])
def test_a_malformed_version_is_refused_before_the_call(name: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        fw.Client().version_name(name)
