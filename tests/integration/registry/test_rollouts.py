"""Rollouts that a monitor provides evidence for by gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC
from typing import Any

import pytest

from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_registry.config import RegistrySettings
from tests.support.builders.registry import ModelClient
from tests.support.builders.step_evidence import FIRST_EVENT
from tests.support.eventually import eventually
from tests.support.peers.registry import (
    CANARY,
    SHADOW,
    FakeMonitor,
    comparison,
    running_gateway,
    serving_monitor,
)
from tests.support.ports import free_port
from tests.support.servers.registry import refused, running_registry

POLICY = model_pb2.RolloutPolicy(
    shadow_min_labelled=200,
    shadow_max_log_loss_delta=0.0,
    canary_min_predictions=100,
    canary_max_log_loss_delta=0.02,
)
POLICY.min_bake.FromSeconds(86_400)
POLICY.min_wall_bake.FromSeconds(0)


@pytest.fixture
async def client(registry: Any) -> AsyncIterator[ModelClient]:
    """A client of a registry with one gateway, which loads every release."""
    async with running_gateway(registry, "g"):
        yield ModelClient(registry)


async def start_in_shadow(
    client: ModelClient, **policy: Any
) -> tuple[model_pb2.ModelVersion, model_pb2.ModelVersion, model_pb2.Rollout]:
    """Create a champion, and a challenger in shadow; return both versions and the rollout."""
    await client.create(rollout_policy=POLICY)
    champion, _ = await client.champion()
    challenger, release = await client.staged("second")
    rollout = await client.start(release.name, **policy)
    return champion, challenger, await wait_for_state(client, rollout.name, "SHADOW")


async def wait_for_state(client: ModelClient, rollout: str, state: str) -> model_pb2.Rollout:
    """Wait until the rollout has the state, and return it."""

    async def check() -> Any:
        found = await client.rollout(rollout)
        assert model_pb2.RolloutState.Name(found.state) == f"ROLLOUT_STATE_{state}", found.reason
        return found

    found: model_pb2.Rollout = await eventually(check, within=20)
    return found


async def test_a_better_challenger_passes_shadow_and_canary(
    client: ModelClient, monitor: FakeMonitor
) -> None:
    champion, challenger, rollout = await start_in_shadow(client)
    assert rollout.state == model_pb2.ROLLOUT_STATE_SHADOW
    monitor.answers = {SHADOW: comparison(), CANARY: comparison(predictions=150, labelled=40)}
    done = await wait_for_state(client, rollout.name, "PROMOTED")
    states = [
        (model_pb2.RolloutState.Name(s.state).removeprefix("ROLLOUT_STATE_"), s.challenger_percent)
        for s in done.history
    ]
    assert states[0] == ("PENDING_LOAD", 0)
    assert states[1:] == [("SHADOW", 0), ("CANARY", 5), ("CANARY", 20), ("CANARY", 100), ("PROMOTED", 100)]
    assert await client.stage(challenger.name) == "PRODUCTION"
    assert await client.stage(champion.name) == "ARCHIVED"
    moves = [
        (e.subject, e.from_state, e.to_state)
        for e in await client.audit()
        if e.subject in (challenger.name, champion.name) and e.from_state
    ]
    assert moves[-4:] == [
        (challenger.name, "NONE", "STAGING"),
        (challenger.name, "STAGING", "CANDIDATE"),
        (champion.name, "PRODUCTION", "ARCHIVED"),
        (challenger.name, "CANDIDATE", "PRODUCTION"),
    ]
    evidence = await client.stub.GetEvidence(registry_pb2.GetEvidenceRequest(name=done.history[2].evidence))
    assert evidence.evidence.kind == "SHADOW"
    assert evidence.evidence.passed
    # Howard et al. 2021, equation 14, with 1,000 rows, rho = 200 / 8 and level 0.05: 2.9255 standard errors.
    assert evidence.evidence.values["log_loss_delta_upper"] == pytest.approx(-0.02 + 2.9255 * 0.006, abs=1e-4)
    # The evidence of each step is that of its own generation of the routing.
    generations = {r.generation for r in monitor.requests if r.mode == CANARY}
    assert len(generations) == 3
    assert min(generations) > max(r.generation for r in monitor.requests if r.mode == SHADOW)


async def test_a_worse_challenger_is_refused_in_shadow(client: ModelClient, monitor: FakeMonitor) -> None:
    champion, challenger, rollout = await start_in_shadow(client)
    monitor.answers = {SHADOW: comparison(delta=0.05)}
    done = await wait_for_state(client, rollout.name, "REFUSED")
    assert "+0.05000" in done.reason
    assert await client.stage(challenger.name) == "REJECTED"
    assert await client.stage(champion.name) == "PRODUCTION"


async def test_missing_labels_hold_the_rollout(client: ModelClient, monitor: FakeMonitor) -> None:
    _, _, rollout = await start_in_shadow(client)
    monitor.answers = {SHADOW: comparison(labelled=150)}

    async def held() -> bool:
        found = await client.rollout(rollout.name)
        return found.last_decision == model_pb2.ROLLOUT_DECISION_HOLD and "150 of 200" in found.reason

    await eventually(held)
    started = (await client.rollout(rollout.name)).step_started_at.ToDatetime(tzinfo=UTC)
    assert FIRST_EVENT == started


async def test_a_canary_without_labels_holds_until_it_has_enough_answers(
    client: ModelClient, monitor: FakeMonitor
) -> None:
    _, _, rollout = await start_in_shadow(client)
    monitor.answers = {SHADOW: comparison(), CANARY: comparison(predictions=7, labelled=0)}

    async def held() -> bool:
        found = await client.rollout(rollout.name)
        return found.last_decision == model_pb2.ROLLOUT_DECISION_HOLD and "7 of" in found.reason

    await eventually(held)


async def test_a_guardrail_breach_rolls_back_but_keeps_the_candidate(
    client: ModelClient, monitor: FakeMonitor
) -> None:
    policy = model_pb2.RolloutPolicy()
    policy.CopyFrom(POLICY)
    policy.max_error_rate = 0.01
    champion, challenger, rollout = await start_in_shadow(client, policy=policy, reason="stricter")
    monitor.answers = {
        SHADOW: comparison(),
        CANARY: comparison(predictions=50, labelled=0, days=0.0, error_rate=0.2),
    }
    done = await wait_for_state(client, rollout.name, "ROLLED_BACK")
    assert "error rate 0.2" in done.reason
    assert done.challenger_percent == 0
    assert await client.stage(challenger.name) == "CANDIDATE"
    assert await client.stage(champion.name) == "PRODUCTION"


async def test_a_canary_of_worse_quality_is_rolled_back_and_rejected(
    client: ModelClient, monitor: FakeMonitor
) -> None:
    _, challenger, rollout = await start_in_shadow(client)
    monitor.answers = {SHADOW: comparison(), CANARY: comparison(delta=0.05)}
    await wait_for_state(client, rollout.name, "ROLLED_BACK")
    assert await client.stage(challenger.name) == "REJECTED"


async def test_a_paused_rollout_decides_nothing_until_it_is_resumed(
    client: ModelClient, monitor: FakeMonitor
) -> None:
    _, _, rollout = await start_in_shadow(client)
    paused = (
        await client.stub.PauseRollout(registry_pb2.PauseRolloutRequest(name=rollout.name, reason="wait"))
    ).rollout
    assert paused.state == model_pb2.ROLLOUT_STATE_PAUSED
    requests_before = len(monitor.requests)
    monitor.answers = {SHADOW: comparison(), CANARY: comparison()}
    resumed = (await client.stub.ResumeRollout(registry_pb2.ResumeRolloutRequest(name=rollout.name))).rollout
    assert resumed.state == model_pb2.ROLLOUT_STATE_SHADOW
    await wait_for_state(client, rollout.name, "PROMOTED")
    assert len(monitor.requests) > requests_before
    with refused("FAILED_PRECONDITION", "ROLLOUT_ENDED"):
        await client.stub.PauseRollout(registry_pb2.PauseRolloutRequest(name=rollout.name))


async def test_operators_can_skip_steps_and_abort(client: ModelClient) -> None:
    champion, challenger, rollout = await start_in_shadow(client)
    with refused("INVALID_ARGUMENT", "REASON_REQUIRED"):
        await client.stub.SkipRolloutStep(registry_pb2.SkipRolloutStepRequest(name=rollout.name))
    skipped = (
        await client.stub.SkipRolloutStep(
            registry_pb2.SkipRolloutStepRequest(name=rollout.name, reason="known")
        )
    ).rollout
    assert (skipped.state, skipped.challenger_percent) == (model_pb2.ROLLOUT_STATE_CANARY, 5)
    assert await client.stage(challenger.name) == "CANDIDATE"
    aborted = (
        await client.stub.AbortRollout(registry_pb2.AbortRolloutRequest(name=rollout.name, reason="enough"))
    ).rollout
    assert aborted.state == model_pb2.ROLLOUT_STATE_ABORTED
    assert await client.stage(champion.name) == "PRODUCTION"


async def test_a_rollout_needs_a_staged_version_and_no_active_rollout(client: ModelClient) -> None:
    await start_in_shadow(client)
    _, release = await client.staged("third")
    with refused("FAILED_PRECONDITION", "ROLLOUT_ACTIVE"):
        await client.start(release.name)
    fourth = await client.version()
    bundle = await client.release(fourth.name)
    rollouts = await client.stub.ListRollouts(registry_pb2.ListRolloutsRequest(parent=client.model))
    await client.stub.AbortRollout(registry_pb2.AbortRolloutRequest(name=rollouts.rollouts[0].name))
    with refused("FAILED_PRECONDITION", "NOT_STAGED"):
        await client.start(bundle.name)


async def test_a_new_release_of_the_serving_version_can_be_rolled_out(
    client: ModelClient, monitor: FakeMonitor
) -> None:
    await client.create(rollout_policy=POLICY)
    version, first = await client.champion()
    second = await client.release(version.name, threshold=0.4)
    with refused("FAILED_PRECONDITION", "ALREADY_SERVING"):
        await client.start(first.name)
    rollout = await client.start(second.name)
    monitor.answers = {SHADOW: comparison(), CANARY: comparison()}
    await wait_for_state(client, rollout.name, "PROMOTED")
    assert await client.stage(version.name) == "PRODUCTION"
    model = (await client.stub.GetModel(registry_pb2.GetModelRequest(name=client.model))).model
    assert model.production_release == second.name


async def test_a_rollout_survives_a_restart_and_a_monitor_outage(
    settings: Callable[..., RegistrySettings],
) -> None:
    port = free_port()
    chosen = settings(monitor_address=f"127.0.0.1:{port}", monitor_timeout_seconds=0.5)
    async with running_registry(chosen) as stub, running_gateway(stub, "g"):
        client = ModelClient(stub)
        _, _, rollout = await start_in_shadow(client)

        async def held() -> bool:
            return "provides no evidence" in (await client.rollout(rollout.name)).reason

        await eventually(held)
        async with serving_monitor(port) as monitor:
            monitor.answers = {SHADOW: comparison()}

            async def canary() -> bool:
                return (await client.rollout(rollout.name)).challenger_percent == 5

            await eventually(canary, within=20)
    async with running_registry(chosen) as stub, serving_monitor(port) as monitor:
        client = ModelClient(stub)
        assert (await client.rollout(rollout.name)).challenger_percent == 5
        monitor.answers = {CANARY: comparison()}
        done = await wait_for_state(client, rollout.name, "PROMOTED")
        assert [s.challenger_percent for s in done.history] == [0, 0, 5, 20, 100, 100]
        assert FIRST_EVENT.year == 2013
