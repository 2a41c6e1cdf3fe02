"""Rollouts and rollback by the SDK and the CLI, on a registry in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

import flywheel as fw
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.registry.v1 import registry_pb2 as pb
from tests.support.builders.registry import ModelClient, gateway_with
from tests.support.commands import flywheel

State = model_pb2.RolloutState
AB_TEST = model_pb2.RolloutPolicy(canary_percents=[50], until_verdict=True)


@pytest.fixture
async def sdk(client: ModelClient) -> AsyncIterator[fw.Client]:
    async with fw.Client(registry=client.stub.address) as opened:
        yield opened


async def cli(client: ModelClient, *command: str) -> Any:
    """Run `flywheel` against the registry."""
    return await flywheel(*command, registry=client.stub.address)


async def two_releases(client: ModelClient) -> list[str]:
    await client.create()
    _, first = await client.champion(b"first")
    _, second = await client.staged(b"second")
    return [first.name, second.name]


async def test_the_sdk_starts_changes_and_watches_a_rollout(client: ModelClient, sdk: fw.Client) -> None:
    releases = await two_releases(client)
    rollout = await sdk.start_rollout("late", releases[1].rpartition("/")[2])
    assert (State.ROLLOUT_STATE_PENDING_LOAD, releases[1]) == (rollout.state, rollout.challenger_release)

    async def watch() -> list[int]:
        return [found.state async for found in sdk.watch_rollout(rollout.name)]

    loaded = gateway_with(client.stub, releases[1])
    async with loaded, asyncio.timeout(20), asyncio.TaskGroup() as group:
        watching = group.create_task(watch())
        for change, state in (
            (sdk.pause_rollout, "PAUSED"),
            (sdk.resume_rollout, "PENDING_LOAD"),
            (sdk.skip_rollout_step, "SHADOW"),
            (sdk.abort_rollout, "ABORTED"),
        ):
            changed = await change(rollout.name, "why")
            assert f"ROLLOUT_STATE_{state}" == State.Name(changed.state)
    assert State.ROLLOUT_STATE_ABORTED == watching.result()[-1]


async def test_an_ab_test_is_concluded_by_the_sdk(client: ModelClient, sdk: fw.Client) -> None:
    releases = await two_releases(client)
    rollout = await sdk.start_rollout("late", releases[1], policy=AB_TEST, reason="conversion")
    await client.skip(rollout.name)
    done = await sdk.conclude_rollout(rollout.name, "SHIP", "conversion +2 %")
    assert State.ROLLOUT_STATE_PROMOTED == done.state
    back = await sdk.rollback("late", "worse at night", to="1")
    assert (True, releases[0]) == (back.complete, back.model.production_release)


async def test_the_command_line_runs_a_rollout(client: ModelClient, tmp_path: Any) -> None:
    await two_releases(client)
    policy = tmp_path / "policy.json"
    policy.write_text('{"canaryPercents": [50], "untilVerdict": true}')
    start = ["models", "rollout", "start", "late", "2", "--policy", str(policy)]
    refused = await cli(client, *start)
    assert (1, True) == (refused.exit_code, "REASON_REQUIRED" in refused.output)
    started = await cli(client, *start, "--reason", "conversion")
    assert 0 == started.exit_code, started.output
    name = f"{client.model}/rollouts/2"

    async def change(*command: str) -> Any:
        verb, *verdict = command
        return await cli(client, "models", "rollout", verb, name, *verdict, "--reason", "why")

    early = await change("skip")
    assert (1, True) == (early.exit_code, "NOT_LOADED" in early.output), early.output
    async with gateway_with(client.stub, f"{client.model}/releases/2"):
        for command, words in (
            (["pause"], "PAUSED"),
            (["resume"], "PENDING_LOAD"),
            (["skip"], "CANARY"),
            (["conclude", "ROLL_BACK"], "ROLLED_BACK"),
        ):
            answer = await change(*command)
            assert (0, True) == (answer.exit_code, words in answer.output), answer.output
    watched = await cli(client, "models", "rollout", "watch", name)
    assert (1, True) == (watched.exit_code, "ROLLED_BACK" in watched.output)


async def test_what_served_at_a_time_is_found(client: ModelClient, sdk: fw.Client) -> None:
    before = datetime.now(UTC)
    releases = await two_releases(client)
    between = datetime.now(UTC)
    await client.promote(
        f"{client.model}/versions/2", to_stage=model_pb2.STAGE_PRODUCTION, override=True, reason="test"
    )
    assert await sdk.served_at("late", before) is None
    for moment, release in ((between, releases[0]), (datetime.now(UTC), releases[1])):
        for given in (moment, moment.replace(tzinfo=None)):
            span = await sdk.served_at("late", given)
            assert span is not None and release == span.release
    shown = await cli(client, "models", "history", "late", "--at", "2100-01-01")
    assert 1 == (await cli(client, "models", "history", "late", "--at", "2020-01-01")).exit_code
    assert (0, True) == (shown.exit_code, releases[1] in shown.output)


async def test_the_command_line_tells_that_a_rollback_is_not_complete(client: ModelClient) -> None:
    _, second = await two_releases(client)
    await client.promote(
        f"{client.model}/versions/2", to_stage=model_pb2.STAGE_PRODUCTION, override=True, reason="test"
    )
    report = pb.ReportServingRequest(
        gateway_id="cut-off", models=[model_pb2.ObservedModel(model=client.model, generation=2)]
    )
    await client.stub.ReportServing(report)
    rollback = ["models", "rollback", "late", "--reason", "bad numbers", "--timeout", "2"]
    answer = await cli(client, *rollback)
    assert 1 == answer.exit_code
    assert "NOT COMPLETE" in answer.output and "cut-off" in answer.output
    await client.stub.ReportServing(pb.ReportServingRequest(gateway_id="cut-off", leaving=True))
    answer = await cli(client, *rollback, "--to", second)
    assert (0, True) == (answer.exit_code, "is to serve" in answer.output), answer.output
