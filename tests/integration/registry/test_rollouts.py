"""Rollouts decided by a monitor that is asked over gRPC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_registry.config import RegistrySettings
from flywheel_registry.testing import START, FakeMonitor, Story, comparison, refused, running, serving_monitor
from tests.support.eventually import eventually
from tests.support.ports import free_port

SHADOW, CANARY = 1, 2
POLICY = model_pb2.RolloutPolicy(
    shadow_min_labelled=200,
    shadow_max_log_loss_delta=0.0,
    canary_min_predictions=100,
    canary_max_log_loss_delta=0.02,
)
POLICY.min_bake.FromSeconds(86_400)


async def challenge(
    story: Story, **policy: Any
) -> tuple[model_pb2.ModelVersion, model_pb2.ModelVersion, model_pb2.Rollout]:
    """A champion, and a challenger in shadow."""
    await story.create(rollout_policy=POLICY)
    champion, _ = await story.champion()
    challenger, release = await story.staged(b"second")
    return champion, challenger, await story.start(release.name, **policy)


async def ended(story: Story, rollout: str, state: str) -> model_pb2.Rollout:
    async def check() -> Any:
        found = await story.rollout(rollout)
        assert model_pb2.RolloutState.Name(found.state) == f"ROLLOUT_STATE_{state}", found.reason
        return found

    found: model_pb2.Rollout = await eventually(check, within=20)
    return found


async def test_a_better_challenger_goes_through_shadow_and_canary_to_production(
    story: Story, monitor: FakeMonitor
) -> None:
    champion, challenger, rollout = await challenge(story)
    assert rollout.state == model_pb2.ROLLOUT_STATE_SHADOW
    monitor.answers = {SHADOW: comparison(), CANARY: comparison(predictions=150, labelled=40)}
    done = await ended(story, rollout.name, "PROMOTED")
    states = [
        (model_pb2.RolloutState.Name(s.state).removeprefix("ROLLOUT_STATE_"), s.challenger_percent)
        for s in done.history
    ]
    assert states == [("SHADOW", 0), ("CANARY", 5), ("CANARY", 20), ("CANARY", 100), ("PROMOTED", 100)]
    assert await story.stage(challenger.name) == "PRODUCTION"
    assert await story.stage(champion.name) == "ARCHIVED"
    moves = [
        (e.subject, e.from_state, e.to_state)
        for e in await story.audit()
        if e.subject in (challenger.name, champion.name) and e.from_state
    ]
    assert moves[-4:] == [
        (challenger.name, "NONE", "STAGING"),
        (challenger.name, "STAGING", "CANDIDATE"),
        (champion.name, "PRODUCTION", "ARCHIVED"),
        (challenger.name, "CANDIDATE", "PRODUCTION"),
    ]
    evidence = await story.stub.GetEvidence(registry_pb2.GetEvidenceRequest(name=done.history[1].evidence))
    assert evidence.evidence.kind == "SHADOW"
    assert evidence.evidence.passed
    assert evidence.evidence.values["log_loss_delta_upper"] == pytest.approx(-0.01)
    # The canary's evidence counts from where the shadow's ended, in event time.
    first_canary = next(r for r in monitor.asked if r.mode == CANARY)
    assert first_canary.start_time == comparison().last_event


async def test_a_worse_challenger_is_refused_in_shadow_and_shown(story: Story, monitor: FakeMonitor) -> None:
    champion, challenger, rollout = await challenge(story)
    monitor.answers = {SHADOW: comparison(delta=0.05)}
    done = await ended(story, rollout.name, "REFUSED")
    assert "+0.05000" in done.reason
    assert await story.stage(challenger.name) == "REJECTED"
    assert await story.stage(champion.name) == "PRODUCTION"


async def test_missing_evidence_and_a_dead_monitor_hold(story: Story, monitor: FakeMonitor) -> None:
    _, _, rollout = await challenge(story)
    monitor.answers = {SHADOW: comparison(labelled=150)}

    async def held() -> bool:
        found = await story.rollout(rollout.name)
        return found.last_decision == model_pb2.ROLLOUT_DECISION_HOLD and "150 of 200" in found.reason

    await eventually(held)
    assert (await story.rollout(rollout.name)).step_started_at == comparison().first_event


async def test_evidence_without_labels_counts_its_answers_while_it_holds(
    story: Story, monitor: FakeMonitor
) -> None:
    _, _, rollout = await challenge(story)
    monitor.answers = {SHADOW: comparison(), CANARY: comparison(predictions=7, labelled=0)}

    async def held() -> bool:
        found = await story.rollout(rollout.name)
        return found.last_decision == model_pb2.ROLLOUT_DECISION_HOLD and "7 of" in found.reason

    await eventually(held)


async def test_a_canary_that_breaks_a_guardrail_is_rolled_back_but_may_try_again(
    story: Story, monitor: FakeMonitor
) -> None:
    policy = model_pb2.RolloutPolicy()
    policy.CopyFrom(POLICY)
    policy.max_error_rate = 0.01
    champion, challenger, rollout = await challenge(story, policy=policy)
    monitor.answers = {
        SHADOW: comparison(),
        CANARY: comparison(predictions=50, labelled=0, days=0.0, error_rate=0.2),
    }
    done = await ended(story, rollout.name, "ROLLED_BACK")
    assert "error rate 0.2" in done.reason
    assert done.challenger_percent == 0
    assert await story.stage(challenger.name) == "CANDIDATE"
    assert await story.stage(champion.name) == "PRODUCTION"


async def test_a_canary_of_worse_quality_is_rolled_back_and_rejected(
    story: Story, monitor: FakeMonitor
) -> None:
    _, challenger, rollout = await challenge(story)
    monitor.answers = {SHADOW: comparison(), CANARY: comparison(delta=0.05, half=0.01)}
    await ended(story, rollout.name, "ROLLED_BACK")
    assert await story.stage(challenger.name) == "REJECTED"


async def test_a_paused_rollout_decides_nothing_until_it_is_resumed(
    story: Story, monitor: FakeMonitor
) -> None:
    _, _, rollout = await challenge(story)
    paused = (
        await story.stub.PauseRollout(registry_pb2.PauseRolloutRequest(name=rollout.name, reason="wait"))
    ).rollout
    assert paused.state == model_pb2.ROLLOUT_STATE_PAUSED
    asked = len(monitor.asked)
    monitor.answers = {SHADOW: comparison(), CANARY: comparison()}
    resumed = (await story.stub.ResumeRollout(registry_pb2.ResumeRolloutRequest(name=rollout.name))).rollout
    assert resumed.state == model_pb2.ROLLOUT_STATE_SHADOW
    await ended(story, rollout.name, "PROMOTED")
    assert len(monitor.asked) > asked
    with refused("FAILED_PRECONDITION", "ROLLOUT_ENDED"):
        await story.stub.PauseRollout(registry_pb2.PauseRolloutRequest(name=rollout.name))


async def test_steps_can_be_skipped_with_a_reason_and_a_rollout_aborted(story: Story) -> None:
    champion, challenger, rollout = await challenge(story)
    with refused("INVALID_ARGUMENT", "REASON_REQUIRED"):
        await story.stub.SkipRolloutStep(registry_pb2.SkipRolloutStepRequest(name=rollout.name))
    skipped = (
        await story.stub.SkipRolloutStep(
            registry_pb2.SkipRolloutStepRequest(name=rollout.name, reason="known")
        )
    ).rollout
    assert (skipped.state, skipped.challenger_percent) == (model_pb2.ROLLOUT_STATE_CANARY, 5)
    assert await story.stage(challenger.name) == "CANDIDATE"
    aborted = (
        await story.stub.AbortRollout(registry_pb2.AbortRolloutRequest(name=rollout.name, reason="enough"))
    ).rollout
    assert aborted.state == model_pb2.ROLLOUT_STATE_ABORTED
    assert await story.stage(champion.name) == "PRODUCTION"


async def test_one_rollout_at_a_time_and_only_of_staged_versions(story: Story) -> None:
    await challenge(story)
    _, release = await story.staged(b"third")
    with refused("FAILED_PRECONDITION", "ROLLOUT_ACTIVE"):
        await story.start(release.name)
    fourth = await story.version(b"fourth")
    bundle = await story.release(fourth.name)
    rollouts = await story.stub.ListRollouts(registry_pb2.ListRolloutsRequest(parent=story.model))
    await story.stub.AbortRollout(registry_pb2.AbortRolloutRequest(name=rollouts.rollouts[0].name))
    with refused("FAILED_PRECONDITION", "NOT_STAGED"):
        await story.start(bundle.name)


async def test_a_new_release_of_the_serving_version_can_be_rolled_out(
    story: Story, monitor: FakeMonitor
) -> None:
    await story.create(rollout_policy=POLICY)
    version, first = await story.champion()
    second = await story.release(version.name, threshold=0.4)
    with refused("FAILED_PRECONDITION", "ALREADY_SERVING"):
        await story.start(first.name)
    rollout = await story.start(second.name)
    monitor.answers = {SHADOW: comparison(), CANARY: comparison()}
    await ended(story, rollout.name, "PROMOTED")
    assert await story.stage(version.name) == "PRODUCTION"
    model = (await story.stub.GetModel(registry_pb2.GetModelRequest(name=story.model))).model
    assert model.production_release == second.name


async def test_a_rollout_goes_on_after_a_restart_and_waits_for_a_monitor_that_is_down(
    settings: Callable[..., RegistrySettings],
) -> None:
    port = free_port()
    chosen = settings(monitor_address=f"127.0.0.1:{port}", monitor_timeout_seconds=0.5)
    async with running(chosen) as stub:
        story = Story(stub)
        _, _, rollout = await challenge(story)

        async def held() -> bool:
            return "could not be asked" in (await story.rollout(rollout.name)).reason

        await eventually(held)
        async with serving_monitor(port) as monitor:
            monitor.answers = {SHADOW: comparison()}

            async def canary() -> bool:
                return (await story.rollout(rollout.name)).challenger_percent == 5

            await eventually(canary, within=20)
    async with running(chosen) as stub, serving_monitor(port) as monitor:
        story = Story(stub)
        assert (await story.rollout(rollout.name)).challenger_percent == 5
        monitor.answers = {CANARY: comparison()}
        done = await ended(story, rollout.name, "PROMOTED")
        assert [s.challenger_percent for s in done.history] == [0, 5, 20, 100, 100]
        assert START.year == 2013
