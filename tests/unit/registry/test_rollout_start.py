"""What a rollout needs to start."""

from __future__ import annotations

import pytest

from flywheel_registry.audit.chain import AuditEntry
from flywheel_registry.audit.errors import ReasonRequired
from flywheel_registry.gates.errors import GateFailed
from flywheel_registry.models.names import VersionName
from flywheel_registry.policies.gate_policy import GatePolicy, MetricThreshold
from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.promotion.promotion import Promotions
from flywheel_registry.rollouts.errors import NotLoaded
from flywheel_registry.rollouts.state_machine import RolloutState
from flywheel_registry.serving.desired_state import ServedRelease, load_serving_model
from flywheel_registry.serving.gateways import ObservedModel
from flywheel_registry.stages.transitions import Stage
from tests.support.builders.rollouts import LATE, Simulation

NOT_WORSE = GatePolicy((MetricThreshold("auc", min_delta=0.0),))


async def entries(simulation: Simulation, action: str) -> list[AuditEntry]:
    async with simulation.store.reading() as records:
        return [e for e in await records.audit(LATE, 1 << 30, 999) if e.action == action]


async def test_the_offline_gate_compares_with_the_champion_of_today() -> None:
    simulation = Simulation()
    await simulation.create(gate=NOT_WORSE)
    slow, fast = await simulation.release(auc=0.75), await simulation.release(auc=0.9)
    await simulation.promote(3, Stage.PRODUCTION, override=True)
    with pytest.raises(GateFailed, match=r"0.75 - 0.9 = -0.15"):
        await simulation.begin(slow)
    async with simulation.store.reading() as records:
        assert await records.active_rollout(LATE) is None
    assert fast == 3


async def test_an_override_of_the_gate_needs_a_reason_and_is_audited() -> None:
    simulation = Simulation()
    await simulation.create(gate=NOT_WORSE)
    release = await simulation.release(stage=None, auc=0.6)
    await simulation.promote(2, Stage.STAGING, override=True)
    with pytest.raises(ReasonRequired):
        await simulation.begin(release, reason="", override=True)
    await simulation.begin(release, reason="the label changed", override=True)
    (entry,) = [e for e in await entries(simulation, "OVERRIDE") if e.reason.startswith("the label")]
    assert "0.6 - 0.7 = -0.1" in entry.reason
    assert entry.evidence and entry.evidence_hash


async def test_proof_against_the_same_champion_and_policy_is_not_repeated() -> None:
    """The metrics of an EVALUATE job are in the evidence only: they count while the champion is the same."""
    simulation = Simulation()
    await simulation.create(gate=NOT_WORSE)
    release = await simulation.release(stage=None, auc=0.65)
    assert await simulation.promote(2, Stage.STAGING, added={"champion_auc": 0.64})
    rollout = await simulation.begin(release)
    assert RolloutState.PENDING_LOAD is rollout.progress.state
    async with simulation.store.reading() as records:
        proof = await records.newest_evidence_of(LATE, 2, "OFFLINE")
    assert proof is not None
    assert (1, "ann", 0.64) == (proof.champion, proof.producer, proof.values["champion.auc"])
    (started,) = [e for e in await entries(simulation, "START_ROLLOUT") if e.subject == rollout.name]
    assert (proof.name, proof.hash) == (started.evidence, started.evidence_hash)


async def test_the_first_release_is_not_promoted_on_a_failed_gate() -> None:
    simulation = Simulation()
    await simulation.create(gate=GatePolicy((MetricThreshold("auc", min=0.9),)), champion=False)
    release = await simulation.release(stage=None, auc=0.6)
    await simulation.promote(1, Stage.STAGING, override=True)
    with pytest.raises(GateFailed):
        await simulation.begin(release)
    assert Stage.STAGING is await simulation.stage(1)
    rollout = await simulation.begin(release, reason="no other model", override=True)
    assert RolloutState.PENDING_LOAD is rollout.progress.state


async def test_a_policy_of_the_request_is_audited_with_its_differences() -> None:
    simulation = Simulation()
    await simulation.create(policy=RolloutPolicy(min_bake_seconds=60.0))
    release = await simulation.release()
    same = RolloutPolicy(min_bake_seconds=60.0)
    other = RolloutPolicy(min_bake_seconds=1.0, max_error_rate=0.5)
    with pytest.raises(ReasonRequired):
        await simulation.begin(release, other, reason="")
    rollout = await simulation.begin(release, other, reason="urgent")
    assert other == rollout.policy
    (entry,) = await entries(simulation, "OVERRIDE_POLICY")
    assert "urgent: min_bake_seconds: 60.0 → 1.0; max_error_rate: 0.0 → 0.5" == entry.reason
    await simulation.change("abort", rollout.number)
    await simulation.begin(release, same, reason="")
    assert 1 == len(await entries(simulation, "OVERRIDE_POLICY"))


async def test_the_first_release_serves_when_every_live_gateway_has_loaded_it() -> None:
    simulation = Simulation()
    await simulation.create(champion=False)
    rollout = await simulation.begin(await simulation.release(auc=0.7))
    await simulation.ticks(30.0, every=10.0)
    seen = await simulation.rollout(rollout.number)
    assert (RolloutState.PENDING_LOAD, Stage.STAGING) == (seen.progress.state, await simulation.stage(1))
    async with simulation.store.reading() as records:
        waiting = await load_serving_model(records, LATE, lambda release, version: "digest", {})
    assert waiting is not None
    assert (None, ServedRelease(1, "digest")) == (waiting.champion, waiting.challenger)
    simulation.loaded.add(f"{LATE}/releases/1")
    await simulation.ticks(10.0, every=10.0)
    done = await simulation.rollout(rollout.number)
    assert (RolloutState.PROMOTED, Stage.PRODUCTION) == (done.progress.state, await simulation.stage(1))
    async with simulation.store.reading() as records:
        proof = await records.newest_evidence_of(LATE, 1, "LOAD")
    assert proof is not None
    assert proof.passed


async def test_a_first_release_that_no_gateway_can_load_expires_and_may_be_rejected() -> None:
    simulation = Simulation()
    await simulation.create(champion=False)
    rollout = await simulation.begin(await simulation.release(auc=0.7))
    simulation.failures[f"{LATE}/releases/1"] = "it is no ONNX graph"
    await simulation.ticks(7200.0)
    done = await simulation.rollout(rollout.number)
    assert (RolloutState.EXPIRED, Stage.STAGING) == (done.progress.state, await simulation.stage(1))
    assert "it is no ONNX graph" in done.reason
    async with simulation.store.transaction() as records:
        assert await load_serving_model(records, LATE, lambda release, version: "digest", {}) is None
        name = VersionName.numbered(LATE, 1)
        rejected = await Promotions(simulation.clock).reject(records, name, "never loaded", "ann")
    assert Stage.REJECTED is rejected.stage


@pytest.mark.parametrize("pause", [False, True])
async def test_skipping_promotes_no_first_release_that_no_gateway_has_loaded(pause: bool) -> None:
    simulation = Simulation()
    await simulation.create(champion=False)
    rollout = await simulation.begin(await simulation.release(auc=0.7))
    if pause:
        await simulation.change("pause", rollout.number)
    with pytest.raises(NotLoaded, match=f"{LATE}/releases/1"):
        await simulation.skip(rollout.number)
    await simulation.gateways.heartbeat("failed", [ObservedModel(LATE, 1, (), {f"{LATE}/releases/1": "no"})])
    await simulation.gateways.heartbeat("old", [ObservedModel(LATE, 1, (f"{LATE}/releases/2",))])
    await simulation.gateways.heartbeat("elsewhere", [ObservedModel(LATE, 1, (f"{LATE}/releases/1",))])
    await simulation.gateways.set_project("elsewhere", "q")
    with pytest.raises(NotLoaded):
        await simulation.skip(rollout.number)
    simulation.loaded = {f"{LATE}/releases/1"}
    await simulation.heartbeat()
    simulation.clock.advance(2.0)
    with pytest.raises(NotLoaded):
        await simulation.skip(rollout.number)
    assert Stage.STAGING is await simulation.stage(1)
    async with simulation.store.reading() as records:
        assert (await records.routing(LATE)).champion is None
    await simulation.heartbeat()
    skipped = await simulation.skip(rollout.number)
    assert (RolloutState.PROMOTED, Stage.PRODUCTION) == (skipped.progress.state, await simulation.stage(1))


@pytest.mark.parametrize("until_verdict", [False, True])
async def test_skips_lead_no_challenger_to_production_that_never_loaded(until_verdict: bool) -> None:
    simulation = Simulation()
    percents = (50.0,) if until_verdict else (50.0, 100.0)
    await simulation.create(policy=RolloutPolicy(canary_percents=percents, until_verdict=until_verdict))
    rollout = await simulation.begin(await simulation.release(auc=0.8))
    with pytest.raises(NotLoaded):
        await simulation.skip(rollout.number)
    assert rollout.progress == (await simulation.rollout(rollout.number)).progress
